import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model_code.tracking.tensorboard import TENSORBOARD_FOLDER, TensorBoardWriter
from model_code.training.processes import ALONE
from model_code.training.results import Callback
from model_code.training.supervised import build_model, fit
from tests.unit.training.small_runs import make_config, make_images

CURVES = {
    "train/seconds": "seconds",
    "train/pictures_per_s": "pictures_per_s",
    "train/loss": "train_loss",
    "train/accuracy": "train_accuracy",
    "train/learning_rate": "learning_rate",
    "validation/loss": "validation_loss",
    "validation/accuracy": "validation_accuracy",
    "validation/macro_f1": "validation_macro_f1",
}


class StopAfterTwo(Callback):
    def on_epoch_end(self, metrics):
        if metrics.epoch == 2:
            raise KeyError


def read_events(run_dir):
    events = EventAccumulator(str(run_dir / TENSORBOARD_FOLDER))
    events.Reload()
    return events


def test_curves_and_graph_are_readable(tmp_path):
    images, config = make_images(), make_config()
    with TensorBoardWriter(tmp_path) as writer:
        result = fit(config, images, tmp_path, ALONE, [writer])
        model = build_model(config, 4, 8)
        writer.write_graph(model, images.validation.images_NHWC[:1])
    events = read_events(tmp_path)
    assert set(events.Tags()["scalars"]) == set(CURVES)
    for key, attribute in CURVES.items():
        points = events.Scalars(key)
        assert [point.step for point in points] == [1, 2, 3, 4]
        expected = [getattr(metrics, attribute) for metrics in result.history]
        assert [point.value for point in points] == pytest.approx(expected, rel=1e-6)
    assert events.Tags()["graph"] is True
    operations = {node.op for node in events.Graph().node}
    assert {"aten::_convolution", "aten::batch_norm", "aten::linear"} <= operations
    assert not model.training


def test_drawing_the_graph_changes_no_weights(tmp_path):
    model = build_model(make_config(), 4, 8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with TensorBoardWriter(tmp_path) as writer:
        writer.write_graph(model, make_images().validation.images_NHWC[:1])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_run_that_goes_on_appends_to_its_events(tmp_path):
    images, config = make_images(), make_config()
    with pytest.raises(KeyError), TensorBoardWriter(tmp_path) as writer:
        fit(config, images, tmp_path, ALONE, [writer, StopAfterTwo()])
    with TensorBoardWriter(tmp_path) as writer:
        fit(config, images, tmp_path, ALONE, [writer])
    points = read_events(tmp_path).Scalars("validation/accuracy")
    assert [point.step for point in points] == [1, 2, 3, 4]
