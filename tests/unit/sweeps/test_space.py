"""Space of a sweep: what it may say, and one line for what it may not."""

from pathlib import Path

import pytest

from model_code.errors import UsageError
from model_code.recipes.catalog import build_config
from model_code.sweeps.space import Range, Space, read_space


def _read(folder: Path, text: str) -> Space:
    file = folder / "space.toml"
    file.write_text(text, encoding="utf-8")
    return read_space(file, build_config("fastnet_cifar10", "smoke", {}))


def test_ranges_choices_and_settings_inside_others_are_read(tmp_path: Path) -> None:
    space = _read(
        tmp_path,
        """
        weight_decay = {low = 1e-5, high = 0.01, log = true}
        batch_size = {low = 64, high = 250, step = 64}
        device = ["auto", "cpu"]
        "engine.pictures" = ["auto", "streamed"]
        """,
    )

    assert list(space) == ["batch_size", "device", "engine.pictures", "weight_decay"]
    batches = space["batch_size"]
    assert isinstance(batches, Range)
    assert batches.is_whole
    assert batches.last == 192
    assert space["device"] == ("auto", "cpu")
    assert space["weight_decay"] == Range(low=1e-5, high=0.01, log=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it names no setting"),
        ("batch_size = [", "Invalid"),
        ("batch_size = 64", "batch_size: 64 is one value"),
        ("batch_size = [64]", "two or more different choices"),
        ("batch_size = [64, 64]", "two or more different choices"),
        ("weight_decay = [1, true]", "two or more different choices"),
        ("weight_decay = [0.0, 0]", "two or more different choices"),
        ("batch_size = {low = 64.0, high = 128}", "batch_size"),
        ("batch_size = {low = 64, high = 128, step = 0.5}", "batch_size"),
        ("batch_size = {low = 64, high = 128, step = 1000}", "step must be at most 64"),
        ("seed = [1, 2]", "give --seed N"),
        ('dataset = ["a", "b"]', "give --data NAME"),
        ("batch_size = [64, [1]]", "choices are texts, numbers"),
        ("batch_size = {low = 64}", "batch_size.high: Field required"),
        ("batch_size = {low = 64, high = 32}", "low must be below high, not 64 and 32"),
        ("weight_decay = {low = 0, high = 1, log = true}", "low must be above 0, not 0"),
        ("weight_decay = {low = 1, high = 2, log = true, step = 1}", "exclude each other"),
        ("batch_size = {low = 64, high = 128, step = 0}", "step must be above 0"),
        ("batch_size = {low = 64, high = 128, steps = 2}", "batch_size.steps: Extra inputs"),
        ("batch_size = {low = 1, high = 128}", "batch_size=1"),
        ("batch_size = {low = nan, high = 128}", "finite"),
        ('device = ["cpu", "tpu"]', "device='tpu'"),
        ("batch_sise = [64, 128]", "did you mean batch_size?"),
        ('recipe = ["a", "b"]', "has no setting 'recipe'"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=r"space\.toml") as refusal:
        _read(tmp_path, text)

    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_space(tmp_path / "space.toml", build_config("fastnet_cifar10", "smoke", {}))
