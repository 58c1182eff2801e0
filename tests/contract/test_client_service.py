"""The client against the real service."""

import pytest

from serving.client.client import predict
from serving.errors import ClientError
from tests.unit.serving.tiny_bundle import COLOURS, paint


def test_folders_and_bad_files(service, tmp_path):
    for number, name in enumerate([*COLOURS] * 12):
        (tmp_path / f"{number:03} {name}.png").write_bytes(paint(name))
    (tmp_path / "zz.jpg").write_bytes(b"garbage")
    result = predict([str(tmp_path)], service.url, "food", 2)
    assert [one.label for one in result.predictions] == [*COLOURS] * 12
    assert all(f" {one.label}.png" in one.filename for one in result.predictions)
    assert [one.source for one in result.problems] == [str(tmp_path / "zz.jpg")]
    assert "that are no image" in result.problems[0].message
    assert result.model.name == "food"


@pytest.mark.parametrize(("model", "top_k", "words"), [("dogs", None, "loaded:"), ("food", 99, "from 1 to 6")])
def test_refusals_reach_the_person(service, tmp_path, model, top_k, words):
    (tmp_path / "a.png").write_bytes(paint())
    with pytest.raises(ClientError, match=words):
        predict([str(tmp_path / "a.png")], service.url, model, top_k)
