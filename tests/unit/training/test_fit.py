import shutil
from dataclasses import asdict
from itertools import chain
from typing import ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from model_code.errors import DiskFullError, TrainingError, UsageError
from model_code.evaluation.metrics import measure, predict_logits
from model_code.models.networks import NETWORKS
from model_code.training.checkpoints import load_state
from model_code.training.processes import ALONE
from model_code.training.results import Callback
from model_code.training.run_folder import STATE_FILE
from model_code.training.supervised import build_model, fit, load_model
from tests.unit.training.small_runs import TinyNetwork, draw_images, make_config, make_images


class StopHere(Exception):  # noqa: N818 - an interruption, not an error
    pass


class Interrupt(Callback):
    """Raises after an epoch, or after a step of it."""

    def __init__(self, epoch, step=None):
        self.epoch, self.step = epoch, step

    def on_step(self, epoch, step, steps, loss):
        if (epoch, step) == (self.epoch, self.step):
            raise StopHere

    def on_epoch_end(self, metrics):
        if metrics.epoch == self.epoch and self.step is None:
            raise StopHere


class Recorder(Callback):
    def __init__(self):
        self.resumed, self.steps, self.epochs = [], [], []

    def on_resume(self, history):
        self.resumed.append([metrics.epoch for metrics in history])

    def on_step(self, epoch, step, steps, loss):
        self.steps.append((epoch, step, steps, loss))

    def on_epoch_end(self, metrics):
        self.epochs.append(metrics.epoch)


class FixedNetwork(nn.Module):
    """Answers class 0 for every image and learns nothing, so every epoch is as good as the first."""

    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(1, num_classes)
        self.answer_K = torch.eye(num_classes)[0]

    def forward(self, images_BCHW):
        return self.answer_K + 0 * self.fc(images_BCHW.mean(dim=(1, 2, 3))[:, None])


class WatchingNetwork(TinyNetwork):
    """Notes which images each training step sees, told by their colour."""

    batches: ClassVar[list[list[int]]] = []

    def forward(self, images_BCHW):
        if self.training:
            self.batches.append((images_BCHW[:, 0, 0, 0] * 255).round().int().tolist())
        return super().forward(images_BCHW)


def list_weights(run_dir):
    """{file name: bytes} of the best and the last weights."""
    return {file.name: file.read_bytes() for file in run_dir.glob("*.safetensors")}


def without_times(history):
    return [{**asdict(metrics), "seconds": None, "pictures_per_s": None} for metrics in history]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    images = make_images()
    results = [
        fit(make_config(seed=seed), images, tmp_path / name, ALONE) for name, seed in [("a", 3), ("b", 3), ("c", 4)]
    ]
    first, again, other = (list_weights(tmp_path / name) for name in "abc")
    assert len(first) == 2
    assert first == again
    assert first["last.safetensors"] != other["last.safetensors"]
    assert without_times(results[0].history) == without_times(results[1].history)
    assert without_times(results[0].history) != without_times(results[2].history)


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (1, None), (2, None), (3, 2), (4, 3), (4, None)])
def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path, epoch, step):
    config, images = make_config(decay_points=(0.5,)), make_images(train=26)
    whole = fit(config, images, tmp_path / "whole", ALONE)
    with pytest.raises(StopHere):
        fit(config, images, tmp_path / "parts", ALONE, [Interrupt(epoch, step)])
    torch.rand(7)
    recorder = Recorder()
    parts = fit(config, images, tmp_path / "parts", ALONE, [recorder])
    finished = epoch if step is None else epoch - 1
    assert recorder.resumed == ([list(range(1, finished + 1))] if finished else [])
    assert recorder.epochs == list(range(finished + 1, 5))
    assert list_weights(tmp_path / "parts") == list_weights(tmp_path / "whole")
    assert without_times(parts.history) == without_times(whole.history)
    assert [metrics.epoch for metrics in parts.history] == [1, 2, 3, 4]
    assert parts.best_epoch == whole.best_epoch


@pytest.mark.slow
def test_resnet18_interrupted_ends_like_resnet18(tmp_path):
    config = make_config(network="resnet18", epochs=2, crop_padding_pixels=4, learning_rate=0.01)
    images = make_images(train=16, validation=8, side=32)
    whole = fit(config, images, tmp_path / "whole", ALONE)
    with pytest.raises(StopHere):
        fit(config, images, tmp_path / "parts", ALONE, [Interrupt(1)])
    parts = fit(config, images, tmp_path / "parts", ALONE)
    is_equal = list_weights(tmp_path / "parts") == list_weights(tmp_path / "whole")
    shutil.rmtree(tmp_path / "parts")
    shutil.rmtree(tmp_path / "whole")
    assert is_equal
    assert without_times(parts.history) == without_times(whole.history)


def test_every_stop_at_once_ends_like_one_run(tmp_path):
    config, images = make_config(), make_images()
    fit(config, images, tmp_path / "whole", ALONE)
    for epoch, step in [(1, 2), (1, None), (2, 3), (2, None), (3, 1), (3, None), (4, None)]:
        with pytest.raises(StopHere):
            fit(config, images, tmp_path / "parts", ALONE, [Interrupt(epoch, step)])
    fit(config, images, tmp_path / "parts", ALONE)
    assert list_weights(tmp_path / "parts") == list_weights(tmp_path / "whole")


def test_steps_and_epochs_are_told_in_order(tmp_path):
    recorder = Recorder()
    result = fit(make_config(epochs=2), make_images(train=26), tmp_path, ALONE, [recorder])
    assert [told[:3] for told in recorder.steps] == [(epoch, step, 3) for epoch in (1, 2) for step in (1, 2, 3)]
    assert recorder.epochs == [1, 2]
    assert recorder.resumed == []
    for metrics in result.history:
        losses = [loss for epoch, _, _, loss in recorder.steps if epoch == metrics.epoch]
        assert metrics.train_loss == pytest.approx(np.mean(losses), rel=1e-6)
        assert metrics.seconds > 0
        assert metrics.pictures_per_s > 0


def test_an_epoch_visits_each_training_image_once_in_a_new_order(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "watching", WatchingNetwork)
    monkeypatch.setattr(WatchingNetwork, "batches", [])
    images = make_images(train=26)
    images.train.images_NHWC[:] = torch.arange(26, dtype=torch.uint8)[:, None, None, None]
    images.validation.images_NHWC[:] = 200
    config = make_config(network="watching", epochs=3, crop_padding_pixels=0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    fit(config, images, tmp_path, ALONE)
    batches = WatchingNetwork.batches
    assert [len(batch) for batch in batches] == [8] * 9
    epochs = [list(chain(*batches[start : start + 3])) for start in (0, 3, 6)]
    for order in epochs:
        assert len(set(order)) == 24
        assert set(order) <= set(range(26))
    assert len({tuple(order) for order in epochs}) == 3
    assert len({frozenset(order) for order in epochs}) > 1


@pytest.mark.parametrize("train", [8, 15])
def test_one_batch_is_enough_for_an_epoch(tmp_path, train):
    recorder = Recorder()
    fit(make_config(epochs=1), make_images(train=train), tmp_path, ALONE, [recorder])
    assert [told[:3] for told in recorder.steps] == [(1, 1, 1)]


def test_fewer_images_than_one_batch(tmp_path):
    with pytest.raises(UsageError, match=r"^7 training images are fewer than one batch of 8; raise --limit-train"):
        fit(make_config(), make_images(train=7), tmp_path / "run", ALONE)
    assert not (tmp_path / "run").exists()


def test_training_learns(tmp_path):
    result = fit(make_config(epochs=12), make_images(train=64), tmp_path, ALONE)
    assert result.history[-1].train_loss < result.history[0].train_loss / 2
    assert result.best.validation_accuracy > 0.9


def test_best_and_last_files_hold_the_weights_of_their_epochs(tmp_path):
    config, images = make_config(epochs=6, learning_rate=0.3), make_images()
    result = fit(config, images, tmp_path, ALONE)
    accuracies = [metrics.validation_accuracy for metrics in result.history]
    assert len(set(accuracies)) > 1
    assert result.best_epoch == 1 + int(np.argmax(accuracies))
    assert [file.name for file in tmp_path.glob("best-*")] == [f"best-{result.best_epoch:04d}.safetensors"]
    for weights, metrics in [(result.best_weights, result.best), (result.last_weights, result.history[-1])]:
        model = load_model(config, len(images.classes), images.image_size, weights)
        assert not model.training
        report = measure(predict_logits(model, images.validation.images_NHWC), images.validation.labels_N)
        assert report.accuracy_fraction == metrics.validation_accuracy
        assert report.macro_f1 == metrics.validation_macro_f1
        assert report.loss == pytest.approx(metrics.validation_loss, rel=1e-5)


def test_of_equally_good_epochs_the_first_is_best(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "fixed", FixedNetwork)
    result = fit(make_config(network="fixed"), make_images(), tmp_path, ALONE)
    assert [metrics.validation_accuracy for metrics in result.history] == [0.25] * 4
    assert result.best_epoch == 1
    assert [file.name for file in tmp_path.glob("best-*")] == ["best-0001.safetensors"]
    assert result.best == result.history[0]


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"epochs": 3}, [0.5] * 3),
        ({"epochs": 10, "decay_points": (0.3, 0.6, 0.9)}, [0.5] * 3 + [0.05] * 3 + [0.005] * 3 + [0.0005]),
        ({"epochs": 4, "decay_points": (0.75, 0.25), "decay_factor": 0.5}, [0.5, 0.25, 0.25, 0.125]),
    ],
)
def test_learning_rate_follows_the_decay_points(tmp_path, settings, rates):
    config = make_config(learning_rate=0.5, **settings)
    result = fit(config, make_images(train=8, validation=4), tmp_path, ALONE)
    assert [metrics.learning_rate for metrics in result.history] == pytest.approx(rates)


def test_optimizer_steps_are_those_of_sgd_with_the_settings(tmp_path):
    config = make_config(epochs=1, batch_size=24, crop_padding_pixels=0, has_flip=False, momentum=0.5, weight_decay=0.1)
    images = make_images()
    torch.manual_seed(config.seed)
    model = build_model(config, len(images.classes), images.image_size)
    before = {name: value.detach().clone() for name, value in model[1].named_parameters()}
    nn.functional.cross_entropy(model(images.train.images_NHWC), images.train.labels_N).backward()
    result = fit(config, images, tmp_path, ALONE)
    after = safetensors.torch.load_file(result.last_weights)
    for name, value in model[1].named_parameters():
        step = config.learning_rate * (value.grad + config.weight_decay * before[name])
        torch.testing.assert_close(after[name], before[name] - step, atol=1e-6, rtol=1e-4)


def test_a_loss_that_is_not_finite_names_its_step(tmp_path):
    weights = TinyNetwork(4).state_dict()
    weights["body.0.weight"][0] = 1e38  # finite, but not what a convolution makes of it
    torch.save(weights, tmp_path / "huge.pth")
    config = make_config(pretrained_weights=str(tmp_path / "huge.pth"))
    with pytest.raises(
        TrainingError, match=r"^the loss became nan at step 1 of epoch 1; lower the learning rate .*look at the images"
    ) as e:
        fit(config, make_images(), tmp_path / "run", ALONE)
    assert "--set learning_rate=0.005" in str(e.value)
    assert not (tmp_path / "run").exists()


def test_divergence_leaves_the_checkpoint_before_it(tmp_path):
    config = make_config(decay_points=(0.5,), decay_factor=1e38, learning_rate=1.0)
    images = make_images()
    with pytest.raises(StopHere):
        fit(config, images, tmp_path, ALONE, [Interrupt(2)])
    before = list_weights(tmp_path) | {STATE_FILE: (tmp_path / STATE_FILE).read_bytes()}
    with pytest.raises(TrainingError, match=rf"step [23] of epoch 3; .* the checkpoint before stays in {tmp_path}$"):
        fit(config, images, tmp_path, ALONE)
    assert list_weights(tmp_path) | {STATE_FILE: (tmp_path / STATE_FILE).read_bytes()} == before
    assert load_state(tmp_path, config.sha256()).epoch == 2


def test_a_folder_of_other_settings_is_not_continued(tmp_path):
    fit(make_config(epochs=1), make_images(), tmp_path, ALONE)
    with pytest.raises(TrainingError, match="belongs to a run with other settings"):
        fit(make_config(epochs=2), make_images(), tmp_path, ALONE)


def test_pretrained_weights_are_where_training_starts(tmp_path):
    source = TinyNetwork(7)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    config = make_config(epochs=1, learning_rate=1e-12, pretrained_weights=str(tmp_path / "weights.pth"))
    result = fit(config, make_images(), tmp_path / "run", ALONE)
    trained = safetensors.torch.load_file(result.last_weights)
    torch.testing.assert_close(trained["body.0.weight"], source.body[0].weight.detach(), atol=1e-6, rtol=0)
    assert trained["fc.weight"].shape == (4, 8)


def test_a_full_disk_leaves_the_checkpoint_before_it(small_disk):
    config, images, run_dir = make_config(), make_images(), small_disk / "run"
    with pytest.raises(StopHere):
        fit(config, images, run_dir, ALONE, [Interrupt(2)])
    whole = fit(config, images, small_disk.parent / "whole", ALONE)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(DiskFullError, match="nothing that was there is lost"):
        fit(config, images, run_dir, ALONE)
    assert load_state(run_dir, config.sha256()).epoch == 2
    filler.unlink()
    parts = fit(config, images, run_dir, ALONE)
    assert parts.best_weights.read_bytes() == whole.best_weights.read_bytes()
    assert parts.last_weights.read_bytes() == whole.last_weights.read_bytes()


def test_images_are_not_changed_by_training(tmp_path):
    images = make_images()
    fit(make_config(epochs=1), images, tmp_path, ALONE)
    assert torch.equal(images.train.images_NHWC, draw_images(24, seed=1).images_NHWC)


def test_random_crops_are_trained_on_and_the_middle_is_validated(tmp_path, monkeypatch):
    sizes = {"train": set(), "eval": set()}

    class Watching(TinyNetwork):
        def forward(self, images_BCHW):
            sizes["train" if self.training else "eval"].add(tuple(images_BCHW.shape[2:]))
            return super().forward(images_BCHW)

    monkeypatch.setitem(NETWORKS, "watching", Watching)
    config = make_config(network="watching", image_size=8, epochs=2)
    crops = [fit(config, make_images(side=12), tmp_path / name, ALONE).history for name in ("one", "two")]
    assert sizes == {"train": {(8, 8)}, "eval": {(8, 8)}}
    assert [epoch.train_loss for epoch in crops[0]] == [epoch.train_loss for epoch in crops[1]]
    whole = make_config(network="watching", image_size=8, epochs=2, crop_area=(1.0, 1.0))
    assert fit(whole, make_images(side=12), tmp_path / "whole", ALONE).history[0].train_loss != crops[0][0].train_loss


def test_images_smaller_than_the_recipe_wants_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"^shapes is packed at 8 pixels and image_size=16 is larger; .* anew with"):
        fit(make_config(image_size=16), make_images(side=8), tmp_path, ALONE)
    assert not list(tmp_path.iterdir())


def test_a_network_that_draws_random_numbers_itself_goes_on_with_them(tmp_path, monkeypatch):
    class Dropping(TinyNetwork):
        def forward(self, images_BCHW):
            return super().forward(nn.functional.dropout(images_BCHW, training=self.training))

    class Stop(Callback):
        def on_epoch_end(self, metrics):
            raise KeyboardInterrupt

    monkeypatch.setitem(NETWORKS, "dropping", Dropping)
    config, images = make_config(network="dropping", epochs=2), make_images()
    whole = fit(config, images, tmp_path / "whole", ALONE)
    with pytest.raises(KeyboardInterrupt):
        fit(config, images, tmp_path / "parts", ALONE, [Stop()])
    torch.manual_seed(99)
    resumed = fit(config, images, tmp_path / "parts", ALONE)
    assert resumed.last_weights.read_bytes() == whole.last_weights.read_bytes()
