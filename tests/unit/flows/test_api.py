"""Refusals of `flows.api`, the same as the command's."""

import pytest

from flows.api import Champion, release
from model_code.errors import UsageError
from serving.errors import NotAnImageError
from tests.unit.serving import tiny_bundle


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sometimes"}, r"^--mode=sometimes: must be 'enabled', 'dry_run' or 'forced'$"),
        ({"mode": "forced"}, r"^a forced release needs a reason for the ledger: --why "),
        ({"mode": "forced", "why": ""}, r"^a forced release needs a reason for the ledger: --why "),
        ({"why": 3}, r"^--why=3: must be text$"),
        ({"name": "../x"}, r"'../x'"),
    ],
)
def test_a_release_that_the_command_refuses(options, message):
    with pytest.raises(UsageError, match=message) as error:
        release("fastnet_cifar10", **{"name": "pets", **options})
    assert len(str(error.value).splitlines()) == 1


def test_a_champion_names_as_many_classes_as_it_has(tmp_path):
    tiny_bundle.release(tmp_path / "bundles", "colours")
    champion = Champion("colours")
    image = tiny_bundle.paint("red")
    assert champion.predict(image).label == "red"
    assert [len(champion.predict(image, top_k).top) for top_k in (1, 6)] == [1, 6]
    for top_k in (0, -1, 7):
        with pytest.raises(UsageError, match=rf"^top_k is {top_k}; it must be a whole number from 1 to 6$"):
            champion.predict(image, top_k)
    missing = tmp_path / "missing.png"
    with pytest.raises(NotAnImageError, match=rf"^{missing}: No such file or directory$"):
        champion.predict(missing)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(NotAnImageError, match=rf"^{broken}: 8 bytes that are no image"):
        champion.predict(broken)
    with pytest.raises(NotAnImageError, match=r"^8 bytes that are no image"):
        champion.predict(b"no image")
