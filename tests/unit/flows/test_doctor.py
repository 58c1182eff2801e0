from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version

import pytest

from flows.operations import doctor
from model_code.data.add import add_dataset
from model_code.training.run_folder import JOURNAL_FILE, RESULT_FILE, RunRecord, create_run_folder
from serving.bundle.store import POINTER_FILE
from tests.unit.tracking.small_store import make_settings
from tests.unit.training.small_runs import make_config, tiny_network_entered


@pytest.mark.parametrize(
    ("lacking", "image", "level"),
    [("bentoml", "1a2b", "note"), ("bentoml", None, "missing"), ("torch", "1a2b", "missing")],
)
def test_what_an_image_is_made_without_is_not_missing(monkeypatch, lacking, image, level):
    def lack(name):
        if name == lacking:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", lack)
    monkeypatch.setenv("DARKROOM_GIT_SHA", image or "")
    levels = {finding.what: finding.level for finding in doctor.examine_machine()}
    assert levels[lacking] == level
    assert ("training device" in levels) == (level != "missing")


def test_a_home_that_is_no_folder_is_told(tmp_path, monkeypatch):
    from flows.operations import doctor

    (tmp_path / "home").write_text("")
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))
    [found] = [finding for finding in doctor.examine_machine() if finding.what == "state"]
    assert (found.level, found.found) == ("missing", f"{tmp_path / 'home'} is no folder; set DARKROOM_HOME to one")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("no data", "darkroom data add shapes"),
        ("interrupted", "darkroom train tiny_pets_test --profile full --seed 0 --resume 33333333, with any"),
        ("offline", "darkroom train tiny_pets_test --profile full --seed 0 --offline --resume 33333333, with any"),
        ("custom", "darkroom train tiny_pets_test --seed 0 --resume 33333333, with any"),
        ("trained now", "darkroom train RECIPE --profile smoke"),
        ("finished", "darkroom runs list, then darkroom release RUN_ID --as NAME"),
        ("released", "darkroom serve, then darkroom predict IMAGE"),
    ],
)
def test_the_next_command_goes_on_with_what_is_there(tmp_path, monkeypatch, state, expected):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    settings = make_settings(tmp_path)
    if state != "no data":
        add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, image_size=16, progress=False)
    with tiny_network_entered(), ExitStack() as held:
        if state != "no data":
            config = make_config(profile="custom" if state == "custom" else "full")
            record = RunRecord(run_id="3" * 32, data_checksum="c" * 64, config=config)
            folder = create_run_folder(settings.checkpoints_dir, record)
        if state in ("finished", "released"):
            (folder.path / RESULT_FILE).touch()
        if state == "offline":
            (folder.path / JOURNAL_FILE).touch()
        if state == "trained now":
            held.enter_context(folder.lock())
        if state == "released":
            (settings.bundles_dir / "shapes").mkdir(parents=True)
            (settings.bundles_dir / "shapes" / POINTER_FILE).touch()
        assert doctor._suggest_next().found.startswith(expected)
