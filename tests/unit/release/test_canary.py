"""Canaries: what people correct of their answers decides."""

import json
import zlib
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from scipy.stats import fisher_exact

from flows.jobs.releases import Canary, Challenge
from flows.operations.canary import Answers, compare_canary, compute_p_value, decide_canary
from model_code.errors import ReleaseError, UsageError
from model_code.release.challenge import challenge
from model_code.release.changes import read_ledger
from model_code.release.ledger import complete, move_champion
from model_code.release.versions import get_version, register_version
from model_code.tracking import store as store_module
from serving.bundle.store import CHAMPION, MODEL_FILE, SHARE_TAG, read_challenger, read_pointer, write_challenger
from serving.errors import BundleError
from tests.unit.serving.tiny_bundle import COLOURS

LABELS = tuple(COLOURS)


@pytest.fixture
def name(request, store, monkeypatch):
    """A registered name of each test's own."""
    monkeypatch.setenv("DARKROOM_HOME", str(store[0].home))
    return f"{request.node.originalname.removeprefix('test_')[:50]}-{zlib.crc32(request.node.name.encode())}"


@pytest.fixture
def promote(client, bundles_dir, name):
    def promote(version, before=None):
        fields = {"action": "promote", "before": before, "why": "", "verdict": "well"}
        move_champion(client, bundles_dir, name, version=version, **fields)

    return promote


@pytest.fixture
def versions(client, bundles_dir, make_bundle, name, promote):
    """Three versions of a name, the first one champion."""
    made = []
    for _ in range(3):
        folder, manifest = make_bundle(name)
        made.append(get_version(client, name, register_version(client, folder, manifest)))
    complete(client, bundles_dir, name)
    promote(made[0])
    return made


@pytest.fixture
def answer(store, name):
    """Log answers of a version, of which people corrected some and confirmed others; a request has `size` images."""
    count = 0

    def answer(version, images, corrected, *, confirmed=0, minutes_ago=None, size=1, first=None, **more):
        nonlocal count
        if minutes_ago is None:  # the champion's count from the canary's first on
            minutes_ago = -2 if version == "1" else -1
        log, feedback = store[0].home / "requests", store[0].home / "feedback" / name
        log.mkdir(exist_ok=True)
        time = datetime.now(UTC) - timedelta(minutes=minutes_ago)
        lines = []
        for number in range(images):
            count += 1
            sha256 = f"{count if first is None else first + number:064x}"
            line = {
                "time": time.isoformat(timespec="milliseconds"),
                "request": f"{name} {version} {count // size}",
                "picture_sha256": sha256,
                "model": name,
                "version": version,
                "label": LABELS[0],
                "probability": 0.9,
                "is_confident": True,
                "is_kept": False,
            } | more
            lines.append(json.dumps(line))
            if number < corrected + confirmed:
                folder = feedback / LABELS[number < corrected]
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
    comparison = decide_canary(name)
    assert comparison.champion == Answers("1", requests=900, images=900, labelled=95, corrected=90)
    assert comparison.canary == Answers("2", requests=100, images=100, labelled=8, corrected=1)
    assert (comparison.p_value < 0.01, comparison.decision) == (True, "promote")
    assert read_pointer(bundles_dir, name).version == "2"
    last = read_ledger(bundles_dir, name)[-1]
    assert (last.action, last.from_version, last.to_version) == ("promote", "1", "2")
    assert last.verdict.startswith("canary version 2: 1 of 100 images corrected; champion version 1: 90 of 900 images")
    assert SHARE_TAG not in get_version(client, name, "2").tags
    with pytest.raises(BundleError, match="has no challenger"):
        compare_canary(name)


def test_a_canary_that_is_corrected_more_often_is_withdrawn(client, bundles_dir, name, versions, answer):
    challenge(name, "2", 0.5)
    answer("1", 500, 10)
    answer("2", 500, 60)
    assert decide_canary(name).decision == "withdraw"
    assert read_pointer(bundles_dir, name).version == "1"
    assert set(client.get_registered_model(name).aliases) == {CHAMPION}
    assert SHARE_TAG not in get_version(client, name, "2").tags
    with pytest.raises(BundleError, match="has no challenger"):
        read_challenger(bundles_dir, name)


def test_a_canary_that_shows_no_difference_goes_on(bundles_dir, name, versions, answer):
    challenge(name, "2", 0.5)
    assert decide_canary(name).decision == "wait", "nothing is logged"
    answer("1", 100, 10)
    answer("2", 100, 9)
    assert decide_canary(name).decision == "wait"
    assert (read_pointer(bundles_dir, name).version, read_challenger(bundles_dir, name).version) == ("1", "2")


def test_an_image_counts_with_its_first_answer_since_the_canary_began(name, versions, answer):
    answer("2", 50, 50, minutes_ago=1)
    answer("1", 50, 50, minutes_ago=60 * 24 * 3)
    challenge(name, "2", 0.5)
    answer("3", 20, 20)
    answer("1", 40, 0, size=8, first=10**6)
    answer("2", 60, 6, first=10**6)
    comparison = compare_canary(name)
    assert (comparison.champion.images, comparison.canary.images) == (40, 20)
    assert comparison.champion.corrected == 6, (
        "that people corrected the image after the other answer tells nothing else"
    )
    assert comparison.champion.requests == 6, "images of number 121 to 160 in requests of 8"


def test_a_canary_begins_anew_with_another_share_only(bundles_dir, name, versions):
    challenge(name, "2", 0.1)
    begun = read_challenger(bundles_dir, name)
    write_challenger(bundles_dir, name, begun.model_copy(update={"since": "2026-01-01T00:00:00.000+00:00"}))
    challenge(name, "2", 0.1)
    assert read_challenger(bundles_dir, name).since == "2026-01-01T00:00:00.000+00:00"
    challenge(name, "2", 0.3)
    assert read_challenger(bundles_dir, name).since >= begun.since


@pytest.mark.parametrize("kind", [Canary, Challenge])
def test_a_champion_is_no_challenger_of_its_own(name, versions, kind):
    with pytest.raises(ReleaseError, match=f"^version 1 is the champion of {name}; a challenger is another version$"):
        kind.make(name=name, version="1").check()


def test_a_challenger_with_shadow_traffic_only_is_no_canary(name, versions):
    challenge(name, "2")
    with pytest.raises(ReleaseError, match=rf"gets shadow traffic only; .*: darkroom canary {name} 2 --share 0.1$"):
        compare_canary(name)


def test_a_canary_that_a_kill_left_behind_its_promotion_is_named(bundles_dir, name, versions, promote):
    challenge(name, "2", 0.5)
    left = read_challenger(bundles_dir, name)
    promote(versions[1], before="1")
    write_challenger(bundles_dir, name, left)
    with pytest.raises(ReleaseError, match=rf"^version 2 of {name} is champion already; .* canary {name} --none$"):
        decide_canary(name)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [(None, BundleError, "has no challenger"), ("3", ReleaseError, "were moved while they were compared")],
)
def test_a_canary_that_was_ended_or_replaced_meanwhile_is_not_promoted(
    bundles_dir, name, versions, answer, monkeypatch, other, error, message
):
    """By another command, between the comparison and the lock."""
    opening = store_module.open_store

    def interfere(settings):
        monkeypatch.setattr(store_module, "open_store", opening)
        challenge(name, other, 0.5)
        return opening(settings)

    challenge(name, "2", 0.5)
    answer("1", 500, 60)
    answer("2", 500, 5)
    monkeypatch.setattr(store_module, "open_store", interfere)
    with pytest.raises(error, match=message):
        decide_canary(name)
    assert read_pointer(bundles_dir, name).version == "1"


def test_only_what_champion_and_canary_answered_side_by_side_is_compared(bundles_dir, name, versions, answer):
    """Also where the file does not say when the canary began, or it was loaded much later."""
    challenge(name, "2", 0.5)
    begun = read_challenger(bundles_dir, name)
    write_challenger(bundles_dir, name, begun.model_copy(update={"since": ""}))
    answer("1", 900, 0, minutes_ago=60 * 24 * 3)
    answer("1", 900, 0)
    answer("2", 100, 10, minutes_ago=-2)
    answer("1", 100, 10, minutes_ago=-3)
    comparison = compare_canary(name)
    assert (comparison.champion.images, comparison.canary.images) == (100, 100)
    assert comparison.decision == "wait"
    challenge(name, "2", 0.5)
    assert read_challenger(bundles_dir, name).since >= begun.since, "it heals"


def test_requests_for_a_version_do_not_count(name, versions, answer):
    challenge(name, "2", 0.5)
    answer("1", 50, 50, is_drawn=False)
    answer("2", 10, 1)
    answer("1", 10, 1)
    assert compare_canary(name).champion.images == 10


def test_a_log_that_cannot_be_read_as_a_whole_decides_nothing(store, name, versions, answer):
    challenge(name, "2", 0.5)
    answer("2", 10, 1)
    (store[0].home / "requests" / "2999-01-01.jsonl").mkdir()
    try:
        with pytest.raises(ReleaseError, match=r"2999-01-01\.jsonl cannot be read"):
            compare_canary(name)
    finally:
        (store[0].home / "requests" / "2999-01-01.jsonl").rmdir()


def test_a_canary_ends_with_the_pointer_also_where_the_registry_is_away(
    client, bundles_dir, name, versions, promote, monkeypatch
):
    challenge(name, "2", 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(type(client), "set_registered_model_alias", fail)
        with pytest.raises(ReleaseError, match="the registry could not be told"):
            promote(versions[2], before="1")
    with pytest.raises(BundleError, match="has no challenger"):
        read_challenger(bundles_dir, name)
    assert SHARE_TAG in get_version(client, name, "2").tags
    complete(client, bundles_dir, name)
    assert SHARE_TAG not in get_version(client, name, "2").tags
    assert set(client.get_registered_model(name).aliases) == {CHAMPION}


def fail(*_, **__):
    raise MlflowException("the server is away")


def test_an_alias_that_was_moved_by_other_means_is_not_overwritten(client, name, versions, answer):
    challenge(name, "2", 0.5)
    answer("1", 500, 60)
    answer("2", 500, 5)
    client.set_registered_model_alias(name, CHAMPION, "3")
    with pytest.raises(ReleaseError, match="the alias was moved by other means"):
        decide_canary(name)


def test_a_canary_whose_bundle_is_damaged_is_fetched_before_it_becomes_champion(bundles_dir, name, versions, answer):
    challenge(name, "2", 0.5)
    answer("1", 500, 60)
    answer("2", 500, 5)
    file = bundles_dir / name / read_challenger(bundles_dir, name).bundle / MODEL_FILE
    whole = file.read_bytes()
    file.write_bytes(b"damaged")
    assert decide_canary(name).decision == "promote"
    assert file.read_bytes() == whole


def test_other_classes_are_refused(client, bundles_dir, name, versions, make_bundle):
    folder, manifest = make_bundle(name, classes=tuple(reversed(LABELS)))
    other = register_version(client, folder, manifest)
    with pytest.raises(ReleaseError, match=rf"^version {other} of .* has other classes than the champion, version 1"):
        challenge(name, other, 0.5)
    challenge(name, other)
    assert read_challenger(bundles_dir, name).share == 0


def count_singles(images, corrected):
    return Counter({(1, 1): corrected, (1, 0): images - corrected})


@pytest.mark.parametrize("canary", [(1000, 10), (1000, 0), (1000, 24), (100, 4), (50, 0)])
def test_of_single_images_the_test_is_fishers(canary):
    images, corrected = canary
    champion = (1000, 10)
    expected = fisher_exact([[10, 990], [corrected, images - corrected]]).pvalue
    found = compute_p_value(count_singles(*champion), count_singles(images, corrected))
    # Fisher's two-sided value adds up what is less probable; this one what differs more: nearly the same here.
    assert found == pytest.approx(expected, abs=0.06)
    assert (found < 0.05) == (expected < 0.05)


def test_of_nothing_nothing_follows():
    assert compute_p_value(Counter(), count_singles(100, 5)) == compute_p_value(count_singles(100, 5), Counter()) == 1
    assert compute_p_value(count_singles(100, 0), count_singles(50, 0)) == 1


def draw_requests(draw, sizes, rate):
    """Corrected images of requests; of the images of a request all may be hard."""
    return draw.binomial(sizes, draw.beta(10 * rate, 10 * (1 - rate), len(sizes)))


def decide_at_random(draw, sizes, rates):
    is_canary = draw.random(len(sizes)) < 0.5
    corrected = np.where(is_canary, draw_requests(draw, sizes, rates[1]), draw_requests(draw, sizes, rates[0]))
    sides = [
        Counter(zip(sizes[side].tolist(), corrected[side].tolist(), strict=True)) for side in (~is_canary, is_canary)
    ]
    return compute_p_value(*sides) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1,), (32,), (1, 1, 1, 64)])
def test_equal_versions_are_told_apart_in_5_percent_of_the_cases_and_others_in_most(sizes):
    """Of equal ones a test over images would tell every third pair with 32 images in a request apart."""
    draw = np.random.default_rng(len(sizes))
    trials, requests = 200, np.array(sizes * (400 // len(sizes)))
    # 10 are expected, 22 are beyond 3.8 standard deviations.
    assert sum(decide_at_random(draw, requests, (0.1, 0.1)) for _ in range(trials)) < 22
    assert sum(decide_at_random(draw, requests, (0.05, 0.3)) for _ in range(20)) > 15


def test_the_command_begins_shows_decides_and_ends(bundles_dir, name, versions, answer, capsys):
    def run(**given):
        job = Canary.make(name=name, **given)
        job.check()
        job.run()
        return capsys.readouterr().out

    begun = run(version="2", share=0.125)
    assert begun == f"{name}: version 2 answers 12.5 % of the requests\n  next: darkroom canary {name}\n"
    assert "no answer of the canary is logged" in run()
    answer("1", 300, 30)
    answer("2", 100, 0)
    shown = run()
    assert "the canary is corrected significantly less often" in shown
    assert f"next: darkroom canary {name} --decide" in shown
    assert run(ends=True) == f"{name}: no canary\n"
    run(version="2")
    assert read_challenger(bundles_dir, name).share == 0.1
    answer("1", 300, 30)
    answer("2", 100, 0)
    first, second = map(json.loads, run(form="json", decides=True).splitlines())
    assert (first["role"], second["role"], second["decision"]) == ("champion", "canary", "promote")
    assert read_pointer(bundles_dir, name).version == "2"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"version": "2", "decides": True}, "give one of VERSION, --decide and --none"),
        ({"share": 0.1}, "--share goes with a version"),
        ({"version": "2", "form": "json"}, "--format json goes with a comparison"),
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
