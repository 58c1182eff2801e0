"""What only a CUDA device does: its precision, its graphs, copies beside computation, its memory."""

import pytest
import torch
from torch import nn

from model_code.models.networks import NETWORKS
from model_code.training.engine import choose_engine
from model_code.training.images import Images, TrainingImages
from model_code.training.processes import Processes
from model_code.training.supervised import fit
from tests.unit.training.small_runs import draw_images, make_config

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
    ):
        assert train(tmp_path / name, engine=engine) == pytest.approx(expected, rel=tolerance), name


def test_streamed_images_give_the_same_losses(tmp_path):
    engine = {"precision": "float32"}
    resident = train(tmp_path / "resident", engine=engine)
    assert train(tmp_path / "streamed", is_resident=False, engine=engine) == pytest.approx(resident, rel=1e-3)


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
