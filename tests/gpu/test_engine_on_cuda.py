"""What only a CUDA device does: its precision, its graphs, copies beside computation, its memory."""

import pytest
import torch
from torch import nn

from model_code.data.augmentation import crop_and_flip
from model_code.data.view_settings import ViewSettings
from model_code.data.views import two_views
from model_code.models.networks import NETWORKS
from model_code.training.engine import choose_engine
from model_code.training.images import Images, TrainingImages
from model_code.training.processes import Processes
from model_code.training.results import Callback
from model_code.training.supervised import fit
from tests.unit.training.small_runs import draw_images, make_config, tiny_network_entered

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda", 0)


def train(folder, is_resident=True, **settings):
    """Return the losses of each epoch of a ResNet-18 on drawn images."""

    def place(images):
        images_NHWC = images.images_NHWC.to(CUDA) if is_resident else images.images_NHWC
        return Images(images_NHWC, images.labels_N.to(CUDA))

    learned, asked = (place(draw_images(count, seed=count, side=32)) for count in (512, 64))
    images = TrainingImages(learned, asked, None, tuple("abcd"), "c" * 64)
    defaults = {"network": "resnet18_improved", "epochs": 2, "batch_size": 64, "learning_rate": 0.01, "device": "cuda"}
    result = fit(make_config(**(defaults | settings)), images, folder, Processes(CUDA))
    return [metrics.train_loss for metrics in result.history]


def test_bfloat16_is_chosen_where_the_device_computes_it():
    expected = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    assert choose_engine(make_config(engine={"precision": "auto"}), Processes(CUDA)).precision is expected
    assert choose_engine(make_config(), Processes(CUDA)).precision is torch.float32


def test_every_engine_learns_what_eager_float32_does(tmp_path):
    expected = train(tmp_path / "eager", engine={"precision": "float32"})
    for name, engine, tolerance in (
        ("half", {"precision": "bfloat16"}, 0.05),
        ("contiguous", {"precision": "float32", "memory_format": "contiguous"}, 0.02),
        ("compiled", {"precision": "float32", "compile": "on"}, 0.02),
        ("graphs", {"precision": "float32", "compile": "cuda_graphs"}, 0.02),
        ("step", {"precision": "float32", "compile": "step"}, 0.02),
        ("fastest", {"precision": "float32", "kernels": "fastest"}, 0.02),
        ("tf32", {"precision": "tf32"}, 0.05),
    ):
        assert train(tmp_path / name, engine=engine) == pytest.approx(expected, rel=tolerance), name


def test_streamed_images_give_the_same_losses(tmp_path):
    engine = {"precision": "float32"}
    resident = train(tmp_path / "resident", engine=engine)
    assert train(tmp_path / "streamed", is_resident=False, engine=engine) == pytest.approx(resident, rel=1e-3)


RECORDED = {
    "sgd, average": {"ema_decay": 0.9, "schedule": "cosine"},
    "adamw, clipped": {"optimizer": "adamw", "momentum": 0, "learning_rate": 1e-3, "clip_norm": 1.0},
    "mixed": {"cutmix_alpha": 1.0, "mixup_alpha": 0.2, "erasing_probability": 0.5, "cutout_pixels": 8},
    "fastnet": {
        "network": "fastnet",
        "whitening_images": 256,
        "has_partial_identity": True,
        "has_frozen_norm_scale": True,
        "has_lookahead": True,
        "norm_bias_rate_factor": 64,
        "is_nesterov": True,
        "schedule": "triangular",
        "flip": "alternating",
        "label_smoothing": 0.2,
    },
    "swin": {"network": "swin_cifar", "optimizer": "adamw", "momentum": 0, "learning_rate": 1e-3},
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_step_learns_what_an_eager_one_does(name, tmp_path, monkeypatch, capsys):
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(1) or replay(graph))
    settings = {"epochs": 3, **RECORDED[name]}
    expected = train(tmp_path / "eager", engine={"precision": "float32"}, **settings)
    losses = train(tmp_path / "step", engine={"precision": "float32", "compile": "step"}, **settings)
    assert capsys.readouterr().out == ""
    # Of eight steps an epoch the first three of the run and each epoch's last are eager.
    assert len(replays) == 3 * 8 - 3 - 3
    assert losses == pytest.approx(expected, rel=0.05)


class Asking(nn.Module):
    """Asks the device for a number in each step, which no recording allows."""

    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, images_BCHW):
        means_BC = images_BCHW.mean(dim=(2, 3))
        return self.fc(means_BC) + float(means_BC.detach().sum()) * 0


def test_a_step_that_cannot_be_recorded_is_computed_without(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(NETWORKS, "asking", Asking)
    settings = {"network": "asking", "epochs": 3, "momentum": 0.9}
    expected = train(tmp_path / "eager", engine={"precision": "float32"}, **settings)
    losses = train(tmp_path / "step", engine={"precision": "float32", "compile": "step"}, **settings)
    assert "this step cannot be recorded, training goes on without it" in capsys.readouterr().out
    assert losses == pytest.approx(expected, rel=1e-3)


class StopAfterAnEpoch(Callback):
    def on_epoch_end(self, metrics):
        self.wants_stop = metrics.epoch == 1


@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_run_goes_on_on_the_other_device(first, second, tmp_path, capsys):
    config = make_config(epochs=3, optimizer="adamw", momentum=0, ema_decay=0.9, device="auto")

    def go_on(device, callbacks):
        def place(images):
            return Images(images.images_NHWC.to(device), images.labels_N.to(device))

        learned, asked = (place(draw_images(count, seed=count)) for count in (24, 20))
        images = TrainingImages(learned, asked, None, tuple("abcd"), "c" * 64)
        return fit(config, images, tmp_path, Processes(torch.device(device)), callbacks)

    with tiny_network_entered():
        with pytest.raises(KeyboardInterrupt):
            go_on(first, [StopAfterAnEpoch()])
        assert [metrics.epoch for metrics in go_on(second, []).history] == [1, 2, 3]
    assert f"the run began on {first} and continues on {second}" in capsys.readouterr().out


def test_augmentation_does_not_wait_for_the_device():
    torch.cuda.set_sync_debug_mode("error")
    try:
        generator = torch.Generator(CUDA).manual_seed(0)
        images_BHWC = torch.zeros(16, 32, 32, 3, dtype=torch.uint8, device=CUDA)
        crop_and_flip(images_BHWC, 4, True, generator)
        two_views(images_BHWC, generator, ViewSettings(image_size=32, blur_probability=0.5))
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Hungry(nn.Module):
    """Asks for more memory than the device has, unless there are few images."""

    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, images_BCHW):
        if self.training:
            per_image = torch.cuda.get_device_properties(CUDA).total_memory // 20
            torch.empty(per_image * len(images_BCHW), dtype=torch.uint8, device=CUDA)
        return self.fc(images_BCHW.mean(dim=(2, 3)))


def test_a_batch_that_memory_does_not_hold_is_computed_in_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(NETWORKS, "hungry", Hungry)
    losses = train(tmp_path, network="hungry", batch_size=64, engine={"precision": "float32"})
    assert len(losses) == 2
    assert "each batch of 64 is computed in 4 parts" in capsys.readouterr().out
