"""Canaries: what people correct of their answers decides."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from flows.jobs.releases import Canary
from flows.operations.canary import Answered, Trial, compare, decide
from model_code.errors import ReleaseError, UsageError
from model_code.release.challenge import challenge
from model_code.release.changes import read_ledger
from model_code.release.ledger import complete, move_champion
from model_code.release.versions import get_version, register_version
from serving.bundle.store import SHARE_TAG, read_challenger, read_pointer
from serving.errors import BundleError
from tests.unit.serving.tiny_bundle import COLOURS

LABELS = tuple(COLOURS)


@pytest.fixture
def name(request, store, monkeypatch):
    """A registered name of each test's own."""
    monkeypatch.setenv("DARKROOM_HOME", str(store[0].home))
    return re.sub(r"\W", "-", request.node.name.removeprefix("test_"), flags=re.ASCII)[:60]


@pytest.fixture
def versions(client, bundles_dir, make_bundle, name):
    """Three versions of a name, the first one champion."""
    made = []
    for _ in range(3):
        folder, manifest = make_bundle(name)
        made.append(get_version(client, name, register_version(client, folder, manifest)))
    complete(client, bundles_dir, name)
    move_champion(client, bundles_dir, name, action="promote", before=None, version=made[0], why="", verdict="well")
    return made


@pytest.fixture
def answer(store, name):
    """Log answers of a version, of which people corrected some and confirmed others."""
    count = 0

    def answer(version, images, wrong, *, confirmed=0, minutes_ago=-1, repeats=1):
        nonlocal count
        log, feedback = store[0].home / "requests", store[0].home / "feedback" / name
        log.mkdir(exist_ok=True)
        time = datetime.now(UTC) - timedelta(minutes=minutes_ago)
        lines = []
        for number in range(images):
            count += 1
            sha256 = f"{count:064x}"
            line = {
                "time": time.isoformat(timespec="milliseconds"),
                "picture_sha256": sha256,
                "model": name,
                "version": version,
                "label": LABELS[0],
                "probability": 0.9,
                "is_confident": True,
                "is_kept": False,
            }
            lines += [json.dumps(line)] * repeats
            if number < wrong + confirmed:
                folder = feedback / LABELS[number < wrong]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{sha256}.png").touch()
        with (log / f"{time.date().isoformat()}.jsonl").open("a") as file:
            file.write("\n".join(["{damaged", *lines, ""]))

    return answer


def test_a_canary_that_is_corrected_less_often_becomes_champion(client, bundles_dir, name, versions, answer):
    challenge(name, "2", 0.1)
    assert get_version(client, name, "2").tags[SHARE_TAG] == "0.1"
    answer("1", 900, 90, confirmed=5)
    answer("2", 100, 1, confirmed=7)
    trial = decide(name)
    assert (trial.champion, trial.canary) == (Answered("1", 900, 95, 90), Answered("2", 100, 8, 1))
    assert trial.p_value < 0.001
    assert trial.outcome == "promoted"
    assert read_pointer(bundles_dir, name).version == "2"
    last = read_ledger(bundles_dir, name)[-1]
    assert (last.action, last.from_version, last.to_version) == ("promote", "1", "2")
    assert last.verdict.startswith("canary version 2: 1 of 100 images corrected; champion version 1: 90 of 900 images")
    with pytest.raises(BundleError, match="has no challenger"):
        compare(name)


def test_a_canary_that_is_corrected_more_often_is_withdrawn(client, bundles_dir, name, versions, answer):
    challenge(name, "2", 0.5)
    answer("1", 500, 10)
    answer("2", 500, 60)
    assert decide(name).outcome == "withdrawn"
    assert read_pointer(bundles_dir, name).version == "1"
    assert set(client.get_registered_model(name).aliases) == {"champion"}
    with pytest.raises(BundleError, match="has no challenger"):
        read_challenger(bundles_dir, name)


def test_a_canary_that_shows_no_difference_answers_on(bundles_dir, name, versions, answer):
    challenge(name, "2", 0.5)
    assert decide(name).outcome == "undecided", "nothing is logged"
    answer("1", 100, 10)
    answer("2", 100, 9)
    assert decide(name).outcome == "undecided"
    assert (read_pointer(bundles_dir, name).version, read_challenger(bundles_dir, name).version) == ("1", "2")


def test_only_answers_since_its_begin_count_each_image_once(name, versions, answer):
    answer("2", 50, 50, minutes_ago=1)
    answer("1", 50, 50, minutes_ago=60 * 24 * 3)
    challenge(name, "2", 0.5)
    answer("3", 20, 20)
    answer("2", 10, 2, repeats=5)
    trial = compare(name)
    assert (trial.champion.images, trial.canary) == (0, Answered("2", 10, 2, 2))


def test_a_challenger_that_only_looks_is_no_canary(name, versions):
    challenge(name, "2")
    with pytest.raises(ReleaseError, match=rf"answers no requests; to let it: darkroom canary {name} 2 --share 0.1$"):
        compare(name)


def test_a_champion_that_was_moved_meanwhile_stays(client, bundles_dir, name, versions, answer, monkeypatch):
    challenge(name, "2", 0.5)
    answer("1", 500, 60)
    answer("2", 500, 5)
    trial = compare(name)
    move_champion(client, bundles_dir, name, action="promote", before="1", version=versions[2], why="", verdict="")
    monkeypatch.setattr("flows.operations.canary.compare", lambda _: trial)
    with pytest.raises(ReleaseError, match=r"^version 3 became champion of .* nothing was promoted$"):
        decide(name)
    assert read_pointer(bundles_dir, name).version == "3"


def test_other_classes_are_refused(client, name, versions, make_bundle):
    folder, manifest = make_bundle(name, classes=tuple(reversed(LABELS)))
    other = register_version(client, folder, manifest)
    with pytest.raises(ReleaseError, match=rf"^version {other} of .* has other classes than the champion, version 1"):
        challenge(name, other, 0.5)
    challenge(name, other)


@pytest.mark.parametrize(
    ("canary", "outcome"),
    [((1000, 10), "undecided"), ((1000, 0), "promoted"), ((1000, 40), "withdrawn"), ((0, 0), "undecided")],
)
def test_the_outcome_goes_by_the_share_that_is_corrected(canary, outcome):
    from scipy.stats import fisher_exact

    images, wrong = canary
    p_value = fisher_exact([[10, 990], [wrong, images - wrong]]).pvalue
    trial = Trial("cifar10", 0.5, Answered("1", 1000, 10, 10), Answered("2", images, wrong, wrong), p_value)
    assert trial.outcome == outcome
    low, high = trial.canary.interval
    assert low <= (trial.canary.fraction or 0) <= high


def test_the_command_begins_shows_decides_and_ends(bundles_dir, name, versions, answer, capsys):
    def run(**given):
        job = Canary.make(name=name, **given)
        job.check()
        job.run()
        return capsys.readouterr().out

    assert run(version="2", share=0.25) == (
        f"{name}: version 2 answers 25% of the requests\n  next: darkroom canary {name}\n"
    )
    assert "the service needs --log-requests 1 --feedback" in run()
    answer("1", 300, 30)
    answer("2", 100, 0)
    shown = run()
    assert "what the canary answers is corrected less often" in shown
    assert f"next: darkroom canary {name} --decide" in shown
    assert run(is_ended=True) == f"{name}: no canary\n"
    run(version="2")
    assert read_challenger(bundles_dir, name).share == 0.1
    answer("1", 300, 30)
    answer("2", 100, 0)
    first, second = map(json.loads, run(form="json", is_decided=True).splitlines())
    assert (first["is"], second["is"], second["outcome"]) == ("champion", "canary", "promoted")
    assert read_pointer(bundles_dir, name).version == "2"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"version": "2", "is_decided": True}, "give one of VERSION, --decide and --none"),
        ({"share": 0.1}, "--share goes with a version"),
        ({"version": "2", "share": 0}, "must be more than 0"),
        ({"version": "2", "share": 1.5}, "must be at most 1"),
    ],
)
def test_what_does_not_go_together_is_one_line(given, message):
    with pytest.raises(UsageError, match=message):
        Canary.make(name="cifar10", **given).check()


def test_an_unknown_version_is_named(name, versions):
    with pytest.raises(ReleaseError, match=f"^{name} has no version 9; registered: 1, 2, 3$"):
        Canary.make(name=name, version="9").check()
