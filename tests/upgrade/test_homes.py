"""Homes of earlier versions are read, or refused in one line with the command that helps; `make_homes.py` made them."""

import json
import re
from pathlib import Path

import pytest

from model_code.data.cache import read_manifest
from model_code.errors import DarkroomError
from model_code.release.changes import read_ledger
from model_code.training.run_folder import find_finished, list_interrupted, open_run_folder
from serving.bundle.manifest import Manifest
from serving.bundle.store import read_bundle, read_pointer
from serving.errors import BundleError, ServingError

HOMES = sorted((Path(__file__).parent / "homes").glob("*.json"))
NAME = "shapes"
# Commands that make anew what is refused.
REMEDIES = {
    "cache": r"`darkroom data add shapes",
    "run": r"`darkroom train RECIPE`",
    # Without --mode forced, a release wants to compare with the champion of the earlier version, and cannot.
    "pointer": r"`darkroom release RECIPE --as shapes --mode forced --why REASON`",
    "manifest": r"`darkroom release RECIPE --as shapes`",
}


@pytest.fixture(params=HOMES, ids=lambda file: file.stem)
def home(request, tmp_path):
    """The text files of a home; what has no text is a file of zeros of its size."""
    for name, content in json.loads(request.param.read_text()).items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            file.write_text(content)
        else:
            with file.open("wb") as stream:
                stream.truncate(content)
    return tmp_path


def read_or_refuse(read, remedy):
    """Read something of an old home; a refusal is one line with the command that helps."""
    try:
        return read()
    except (DarkroomError, ServingError) as error:
        message = str(error)
    assert "\n" not in message
    assert re.search(remedy, message), message
    assert message.count("`") == 2, "one command"
    return None


def test_there_are_homes_and_they_are_small():
    assert len(HOMES) >= 3
    assert all(file.stat().st_size < 200_000 for file in HOMES)


def test_runs_are_read_or_trained_again(home):
    (file,) = (home / "checkpoints").glob("*/run.json")
    folder = read_or_refuse(lambda: open_run_folder(home / "checkpoints", file.parent.name), REMEDIES["run"])
    # Others find their way past it.
    assert [run.record.run_id for run in list_interrupted(home / "checkpoints")] == []
    if folder is not None:
        assert folder.result.recipe == "resnet18_cifar10_exp2"
        assert find_finished(home / "checkpoints", folder.record, "0" * 64) is None


def test_images_are_read_or_added_again(home):
    manifest = read_or_refuse(lambda: read_manifest(NAME, home / "cache"), REMEDIES["cache"])
    if manifest is not None:
        assert set(manifest.splits) == {"train", "test"}


def test_a_champion_is_read_or_released_again(home):
    pointers = list((home / "bundles").glob("*/champion.json"))
    for _ in pointers:
        pointer = read_or_refuse(lambda: read_pointer(home / "bundles", NAME), REMEDIES["pointer"])
        if pointer is not None:
            assert read_ledger(home / "bundles", NAME)[-1] == pointer.change
    for file in (home / "bundles").glob("*/*/manifest.json"):
        try:
            Manifest.model_validate_json(file.read_bytes())
        except ValueError:
            read_or_refuse(lambda folder=file.parent: read_bundle(folder), REMEDIES["manifest"])
        else:
            with pytest.raises(BundleError, match="was changed after its release"):  # models are zeros here
                read_bundle(file.parent)
