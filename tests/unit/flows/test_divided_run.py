"""A run whose batches the device's memory divided is not the one that its recipe documents."""

from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from flows.experiments import training
from flows.experiments.experiment import ExperimentResult
from model_code.recipes.catalog import build_config
from model_code.training.results import EpochMetrics, TrainingResult
from model_code.training.run_folder import RunFolder, RunRecord

EPOCH = EpochMetrics(
    epoch=1,
    train_loss=1.0,
    train_accuracy=0.5,
    validation_loss=1.0,
    validation_accuracy=0.5,
    validation_macro_f1=0.5,
    learning_rate=0.1,
    seconds=1.0,
    pictures_per_s=1.0,
)


@pytest.mark.parametrize(
    ("parts", "changes", "profile", "budget"),
    [
        (1, {}, "full", None),
        (4, {}, "custom", "custom: engine.parts=4"),
        (4, {"learning_rate": 0.3}, "custom", "custom: engine.parts=4, learning_rate=0.3"),
    ],
)
def test_a_run_that_memory_divided_is_custom(parts, changes, profile, budget, tmp_path):
    weights = tmp_path / "best.safetensors"
    weights.write_bytes(b"weights")
    done = ExperimentResult({}, TrainingResult((EPOCH,), 1, weights, weights, parts, "eager", seconds_before=1e9))
    experiment = SimpleNamespace(engine_line=None, run=lambda *_: done)
    record = RunRecord(run_id="r", data_checksum="c", config=build_config("resnet18_cifar10_exp", changes=changes))
    tracker = MagicMock()

    @contextmanager
    def track(*_):
        yield tracker

    tracking = SimpleNamespace(track=track)
    result = training._run(RunFolder(tmp_path, record, 0.0), experiment, tracking, "cpu", None, 0.0)
    assert result.profile == profile
    assert result.seconds > 1e9, "the epochs before an interruption count"
    *told, description = [call.args[0] for call in tracker.set_tags.call_args_list]
    assert told == [{"profile": "custom", "budget": budget}] * (parts > 1)
    assert description["mlflow.note.content"].endswith(f" Budget of this run: {budget or 'full'}.")
