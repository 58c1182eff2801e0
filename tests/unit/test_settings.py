from pathlib import Path

import pytest
from pydantic import ValidationError

from model_code.errors import UsageError
from model_code.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def no_addresses(monkeypatch):
    for name in ("DARKROOM_HOME", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)


def test_everything_is_in_the_working_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    home = tmp_path / ".darkroom"
    assert settings == Settings(home=home, tracking_uri=f"sqlite:///{home}/mlflow.db", has_mlflow_server=False)
    assert list(tmp_path.iterdir()) == []


def test_folders_are_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    settings = load_settings()
    folders = {
        name: getattr(settings, f"{name}_dir")
        for name in ("data", "cache", "artifacts", "checkpoints", "bundles", "locks")
    }
    assert folders == {name: tmp_path / name for name in folders}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", "{cwd}/.darkroom"),
        ("state", "{cwd}/state"),
        ("a/../state", "{cwd}/state"),
        ("~/state", "{home}/state"),
        ("/tmp/with space", "/tmp/with space"),
    ],
)
def test_home_is_absolute(tmp_path, monkeypatch, value, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("DARKROOM_HOME", value)
    assert load_settings().home == Path(expected.format(cwd=tmp_path, home=tmp_path / "me"))


def test_a_server_is_used_when_it_is_named(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    settings = load_settings()
    assert (settings.tracking_uri, settings.has_mlflow_server) == ("http://mlflow:5000", True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert not load_settings().has_mlflow_server


def test_the_environment_is_read_at_each_call(tmp_path, monkeypatch):
    homes = []
    for name in ("first", "second"):
        monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / name))
        homes.append(load_settings().home)
    assert homes == [tmp_path / "first", tmp_path / "second"]


def test_settings_cannot_be_changed_or_misspelled(tmp_path):
    settings = Settings(home=tmp_path, tracking_uri="sqlite:///x", has_mlflow_server=False)
    with pytest.raises(ValidationError, match="frozen"):
        settings.home = tmp_path / "other"
    with pytest.raises(ValidationError, match="Extra inputs"):
        Settings(home=tmp_path, tracking_uri="sqlite:///x", has_mlflow_server=False, hmoe=tmp_path)


@pytest.mark.parametrize("below", ["", "state"])
def test_a_home_that_is_a_file_is_refused(tmp_path, monkeypatch, below):
    file = tmp_path / "home"
    file.touch()
    monkeypatch.setenv("DARKROOM_HOME", str(file / below))
    with pytest.raises(UsageError, match=f"{file} is a file; set DARKROOM_HOME to a folder"):
        load_settings()


def test_a_home_whose_place_cannot_be_looked_at_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / ("x" * 300)))
    with pytest.raises(UsageError, match=r"File name too long; set DARKROOM_HOME to another folder$"):
        load_settings()
