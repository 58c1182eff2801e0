"""Releases for real: gate, ledger, rollback, what is refused, and kills at random moments.

DARKROOM_KILLS=50 kills as often as the project promises to survive; two keep the whole suite short.
"""

import itertools
import json
import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_code.data.cache import open_dataset
from model_code.release.changes import read_ledger
from model_code.release.ledger import find_champion
from model_code.release.versions import list_versions, read_verdict
from model_code.settings import load_settings
from model_code.tracking.store import open_store
from model_code.training.run_folder import RUN_FILE
from serving.bundle.store import MODEL_FILE, read_champion, read_pointer
from serving.models.classifier import Classifier
from tests.integration.conftest import COMMAND, home_entered, make_environment

KILLS = int(os.environ.get("DARKROOM_KILLS", "2"))
NAME, DATASET, SIDE, TEST_IMAGES = "colours", "colours", 16, 400
RECIPE = "resnet18_cifar10_exp2"


def draw_colours(folder: Path) -> None:
    """Write images of four colours, most of which can be told apart."""
    generator = np.random.default_rng(0)
    colours = {"tomato": (170, 90, 90), "lettuce": (90, 170, 90), "plum": (90, 90, 170), "grey bread": (130, 130, 130)}
    for split, count in (("train", 100), ("test", TEST_IMAGES // len(colours))):
        for label, colour in colours.items():
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                mean = np.array(colour) + generator.normal(0, 22, 3)
                pixels = mean + generator.normal(0, 20, (SIDE, SIDE, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / split / label / f"{number}.png")


@pytest.fixture(scope="module")
def runs(home, tmp_path_factory):
    """(run that has hardly learned, two runs that have learned more), by id."""
    from flows.api import add_data, train

    folder = tmp_path_factory.mktemp("colours")
    draw_colours(folder)
    with home_entered(home):
        add_data(DATASET, folder, image_size=SIDE)
        budgets = ({"limit_train": 40, "epochs": 1}, {"epochs": 4}, {"epochs": 5})
        return [train(RECIPE, data=DATASET, seed=3, settings={"batch_size": 20}, **one).run_id for one in budgets]


@pytest.fixture(scope="module")
def bundles_dir(home):
    return home / "bundles"


@pytest.fixture(scope="module")
def exports():
    """What was exported, by run id, name and head."""
    return {}


@pytest.fixture
def _exported_once(exports, monkeypatch, tmp_path_factory):
    """Export and certify a run once for all tests of what is decided of it afterwards."""
    from flows.operations import release

    export_task = release.export_task

    def export(run, name, folder, scratch, head):
        key = (run.run_id, name, head)
        if key not in exports:
            exported = export_task(run, name, folder, scratch, head)
            kept = shutil.copytree(scratch, tmp_path_factory.mktemp("exported") / "files")
            exports[key] = exported, kept
        exported, kept = exports[key]
        shutil.copytree(kept, scratch, dirs_exist_ok=True)
        return exported

    monkeypatch.setattr(release, "export_task", export)


def get_client():
    return open_store(load_settings())


def list_moves(bundles_dir):
    return [(change.action, change.from_version, change.to_version) for change in read_ledger(bundles_dir, NAME)]


def test_the_gate_the_ledger_and_the_way_back(darkroom, runs, bundles_dir):
    weak, strong, _ = runs
    dry = darkroom("release", weak, "--as", NAME, "--mode", "dry_run")
    assert dry.status == 0, dry.err
    assert "it would become champion" in dry.out
    assert not (bundles_dir / NAME).exists()
    for command in ("history", "models"):
        unknown = darkroom(command, NAME)
        assert (unknown.status, f"nothing is registered as {NAME}" in unknown.err) == (1, True)

    first = darkroom("release", weak, "--as", NAME)
    assert first.status == 0, first.err
    assert "version 1 is champion" in first.out
    assert "no champion to compare with" in first.out
    again = darkroom("release", weak, "--as", NAME)
    assert (again.status, "version 1 is champion already" in again.out) == (0, True)
    assert "certifying" not in again.out, "nothing is measured again"
    assert "certifying" in darkroom("release", weak, "--as", NAME, "--mode", "dry_run").out

    better = darkroom("release", strong, "--as", NAME, "--why", "it learned more")
    assert better.status == 0, better.err
    assert "version 2 is champion (version 1 before)" in better.out
    worse = darkroom("release", weak, "--as", NAME)
    assert worse.status == 1
    assert "version 1 is registered but not promoted, version 2 stays champion" in worse.out
    assert "is not above 0" in worse.out
    version = get_client().get_model_version(NAME, "1")
    assert read_verdict(version).is_promoted
    assert "no champion to compare with: promoted" in version.tags["verdict"]
    assert list_moves(bundles_dir) == [("promote", None, "1"), ("promote", "1", "2")]

    undone = darkroom("rollback", NAME, "--why", "customers complained")
    assert undone.status == 0, undone.err
    assert "version 1 is champion (version 2 before)" in undone.out
    assert read_pointer(bundles_dir, NAME).version == "1"
    assert find_champion(get_client(), NAME, read_ledger(bundles_dir, NAME)) == "1"
    dry = darkroom("release", strong, "--as", NAME, "--mode", "dry_run")
    assert (dry.status, "would not be promoted" in dry.out) == (1, True)
    refused = darkroom("release", strong, "--as", NAME)
    assert refused.status == 1
    assert "version 2 was rolled back by" in refused.out
    assert "customers complained" in refused.out
    assert darkroom("rollback", NAME).status == 1

    unreasoned = darkroom("release", strong, "--as", NAME, "--mode", "forced")
    assert (unreasoned.status, "--why" in unreasoned.err) == (2, True)
    forced = darkroom("release", strong, "--as", NAME, "--mode", "forced", "--why", "they were wrong")
    assert "version 2 is champion, forced (version 1 before)" in forced.out
    history = darkroom("history", NAME)
    for text in ("version 2 is champion", "they were wrong", "customers complained", "it learned more"):
        assert text in (history.err + history.out).replace("\n", " ")
    lines = [json.loads(line) for line in darkroom("history", NAME, "--format", "json").out.splitlines()]
    assert [line["to_version"] for line in lines] == ["2", "1", "2", "1"]


def test_the_bundle_says_what_was_measured(runs, bundles_dir):
    pointer, folder, manifest = read_champion(bundles_dir, NAME)
    assert manifest.run_id == runs[1]
    by_precision = {variant.precision: variant for variant in manifest.variants}
    assert set(by_precision) >= {"fp32", "int8"}
    for variant in manifest.variants:
        for certificate in variant.certificates:
            assert [batch.batch_size for batch in certificate.batches] == [1, 7, 64, 256]
            assert (certificate.split, certificate.count) == ("test", TEST_IMAGES)
            assert certificate.sha256 == variant.sha256
    assert by_precision["fp32"].certificates[0].max_difference <= 1e-4
    assert {one.split for one in manifest.calibration.reliability} == {"validation", "test"}
    # Whether a network as small as this stays within int8's limits depends on the machine that trained it.
    within = {name for name, one in by_precision.items() if all(proof.refusal is None for proof in one.certificates)}
    assert {variant.precision for variant in manifest.offered} == within >= {"fp32"}
    assert Classifier(folder, pointer.version).variant.precision in within
    artifacts = {file.path for file in get_client().list_artifacts(runs[1], f"release/{NAME}-version-2")}
    assert artifacts == {
        f"release/{NAME}-version-2/{file}" for file in ("card.md", "verdict.json", "validation.png", "test.png")
    }


@pytest.mark.parametrize("setting", ["mean", "classes"])
def test_a_network_that_is_not_the_one_that_was_tested_is_refused(
    darkroom, runs, home, bundles_dir, setting, monkeypatch
):
    """Another normalisation, or other labels, than in the training: PyTorch and ONNX agree, and both are wrong."""
    file = home / "checkpoints" / runs[1] / RUN_FILE
    kept, before = file.read_text(), list_moves(bundles_dir)
    if setting == "mean":
        record = json.loads(kept)
        record["config"]["mean"] = [5.0, 5.0, 5.0]
        file.write_text(json.dumps(record))
    else:
        from model_code.release import export

        swap = export.predict_logits
        monkeypatch.setattr(export, "predict_logits", lambda *given: swap(*given)[:, [1, 0, *range(2, 4)]])
    try:
        done = darkroom("release", runs[1], "--as", NAME, "--mode", "forced", "--why", "planted")
    finally:
        file.write_text(kept)
    assert done.status == 1
    assert "are not those of the training any more; train again" in done.err
    assert list_moves(bundles_dir) == before


def test_a_changed_bundle_is_not_gone_back_to_but_fetched_anew(darkroom, runs, bundles_dir, caplog):
    version = get_client().get_model_version(NAME, "1")
    file = bundles_dir / NAME / version.tags["bundle"] / MODEL_FILE
    good = file.read_bytes()
    file.write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    done = darkroom("rollback", NAME, "--to", "1")
    assert done.status == 0, done.err
    assert "was changed after its release" in caplog.text
    assert file.read_bytes() == good
    unknown = darkroom("rollback", NAME, "--to", "77")
    assert (unknown.status, "colours has no version 77; registered: 1, 2" in unknown.err) == (1, True)


def test_runs_on_other_images_are_named(darkroom, runs):
    done = darkroom("release", RECIPE, "--as", "cifar10")
    assert done.status == 1
    assert "its finished runs are on colours" in done.err
    assert "and not on cifar10 images; train it first" in done.err


def test_runs_on_another_revision_are_named_with_it(darkroom, runs, home):
    files = [home / "checkpoints" / run / RUN_FILE for run in runs]
    kept = [file.read_text() for file in files]
    try:
        for file, text in zip(files, kept, strict=True):
            file.write_text(json.dumps(json.loads(text) | {"data_checksum": "d" * 64}))
        by_recipe = darkroom("release", RECIPE, "--as", NAME)
        by_id = darkroom("release", runs[1], "--as", NAME)
    finally:
        for file, text in zip(files, kept, strict=True):
            file.write_text(text)
    assert by_recipe.status == by_id.status == 1
    assert "needs colours@dddddddddddd (`darkroom data list colours` shows what is packed)" in by_recipe.err
    now = open_dataset(DATASET, home / "cache").checksum[:12]
    assert f"was trained on colours@dddddddddddd, packed now is colours@{now}; add the images" in by_id.err


@pytest.mark.usefixtures("_exported_once")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--max-latency-ms", "0.0001"), "the latency at batch 1 is"),
        (("--max-size-mb", "0.1"), "the file has"),
        (("--min-gain", "0.9"), "is below +90.00"),
        (("--min-gain", "0.9", "--by", "macro-f1"), "points of macro-F1 is below +90.00"),
    ],
)
def test_limits_of_the_command_refuse(darkroom, runs, option, message):
    done = darkroom("release", runs[1], "--as", NAME, "--mode", "dry_run", *option)
    assert done.status == 1, done.err
    assert message in done.out
    assert "version 1 stays champion; it was rolled back by" in done.out, "the rollback of the test before"


def test_an_impossible_limit_is_one_line(darkroom, runs):
    done = darkroom("release", runs[1], "--as", NAME, "--min-gain", "2")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "--min-gain=2.0: must be less than 1" in done.err


def test_of_two_releases_at_once_one_wins_and_the_other_says_so(start_darkroom, runs, bundles_dir):
    assert read_pointer(bundles_dir, NAME).version == "1", "the worse one, so that a better one can win"
    before = list_moves(bundles_dir)
    processes = [start_darkroom("release", runs[2], "--as", NAME) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert sum(f"releasing {NAME}: waiting for another process" in text for text in printed) == 1
    assert sum("version 3 is champion (version 1 before)" in text for text in printed) == 1
    assert sum("version 3 is champion already" in text for text in printed) == 1
    assert list_moves(bundles_dir) == [*before, ("promote", "1", "3")]


def test_a_move_while_a_challenger_is_measured_stops_its_promotion(darkroom, runs, bundles_dir, monkeypatch):
    from flows.operations import release
    from flows.operations.rollback import roll_back

    compare = release.compare_task

    def compare_and_meanwhile(*given):
        verdict = compare(*given)
        roll_back(NAME, why="meanwhile")
        return verdict.model_copy(update={"is_promoted": True})

    monkeypatch.setattr(release, "compare_task", compare_and_meanwhile)
    monkeypatch.setattr(release, "find_rollback_of", lambda *_: None)
    done = darkroom("release", runs[1], "--as", NAME)
    assert done.status == 1
    assert "version 1 became champion of colours (rollback by " in done.err
    assert list_moves(bundles_dir)[-1] == ("rollback", "3", "1")


def test_an_int8_that_was_calibrated_on_noise_is_not_offered(darkroom, runs, bundles_dir, monkeypatch):
    from model_code.release import export

    noise_NHWC = np.random.default_rng(0).integers(125, 131, (64, SIDE, SIDE, 3), dtype=np.uint8)
    monkeypatch.setattr(export, "_draw", lambda _: noise_NHWC)
    done = darkroom("release", runs[1], "--as", NAME, "--mode", "forced", "--why", "planted")
    assert done.status == 0, done.err
    assert re.search(r"int8 on CPU: .*; not offered: at batch 1 .* labels agree \(wanted 99%\)", done.out)
    _, folder, manifest = read_champion(bundles_dir, NAME)
    assert sorted(file.name for file in folder.iterdir()) == ["golden.npz", "manifest.json", "model.onnx"]
    assert manifest.get_variant("int8").file is None
    assert "labels agree" in manifest.get_variant("int8").certificates[0].refusal
    folder = f"release/{NAME}-version-{read_pointer(bundles_dir, NAME).version}"
    card = Path(get_client().download_artifacts(runs[1], f"{folder}/card.md")).read_text()
    assert "refused: at batch 1" in card


@pytest.mark.timeout(900 + 60 * KILLS)
def test_kills_at_random_moments_leave_a_champion_and_a_true_ledger(darkroom, runs, bundles_dir):
    commands = [
        ["release", runs[0], "--as", NAME, "--mode", "forced", "--why", "kill"],
        ["rollback", NAME, "--why", "kill"],
        ["release", runs[1], "--as", NAME, "--mode", "forced", "--why", "kill"],
        ["rollback", NAME, "--to", "1", "--why", "kill"],
    ]
    draw, taken_s, kills, number = random.Random(KILLS), {}, 0, 0
    while kills < KILLS:
        command = commands[number % len(commands)]
        number += 1
        began_s = time.monotonic()
        process = subprocess.Popen(
            [COMMAND, *command], env=make_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        # The first of each kind says how long it takes.
        whole_s = taken_s.get(command[0])
        try:
            process.communicate(timeout=None if whole_s is None else draw.uniform(0.5, 1) * whole_s)
            taken_s[command[0]] = time.monotonic() - began_s
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        check_champion(bundles_dir)
    done = darkroom("history", NAME)
    assert done.status == 0, done.err
    assert f"version {read_pointer(bundles_dir, NAME).version} is champion" in done.err + done.out
    changes = check_champion(bundles_dir)
    assert changes[-1] == read_pointer(bundles_dir, NAME).change
    assert find_champion(get_client(), NAME, changes) == changes[-1].to_version
    found = [(version.run_id, version.tags["precisions"]) for version in list_versions(get_client(), NAME)]
    assert len(set(found)) == len(found)


def check_champion(bundles_dir):
    """The pointer leads to a bundle that answers; no line of the ledger contradicts another; return them."""
    pointer, folder, _ = read_champion(bundles_dir, NAME)
    assert Classifier(folder, pointer.version, manifest_sha256=pointer.manifest_sha256).choice
    changes = read_ledger(bundles_dir, NAME)
    assert [change.number for change in changes] == list(range(1, len(changes) + 1))
    for earlier, later in itertools.pairwise(changes):
        assert later.from_version == earlier.to_version
    assert pointer.change in changes or pointer.change.number == len(changes) + 1
    return changes
