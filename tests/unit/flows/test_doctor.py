from importlib.metadata import PackageNotFoundError, version

import pytest


@pytest.mark.parametrize(
    ("lacking", "image", "level"),
    [("bentoml", "1a2b", "note"), ("bentoml", None, "missing"), ("torch", "1a2b", "missing")],
)
def test_what_an_image_is_made_without_is_not_missing(monkeypatch, lacking, image, level):
    from flows.operations import doctor

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
