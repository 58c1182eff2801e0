from typing import ClassVar

import pytest
import torch
from torch import nn

from model_code.errors import TrainingError, UsageError
from model_code.models.networks import NETWORKS
from model_code.training.checkpoints import load_state
from model_code.training.engine import choose_engine
from model_code.training.processes import ALONE, Processes
from model_code.training.supervised import fit
from tests.unit.training.small_runs import CPU, TinyNetwork, make_config, make_images


class PlainNetwork(nn.Module):
    """Without BatchNorm: what an image gives does not depend on the others of its batch."""

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images_BCHW):
        return self.fc(self.body(images_BCHW).relu().mean(dim=(2, 3)))


class GreedyNetwork(PlainNetwork):
    """Has memory for three images at once, where it learns."""

    def forward(self, images_BCHW):
        if self.training and len(images_BCHW) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return super().forward(images_BCHW)


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    monkeypatch.setitem(NETWORKS, "plain", PlainNetwork)
    monkeypatch.setitem(NETWORKS, "greedy", GreedyNetwork)


def train(folder, **settings):
    """Return the losses of each epoch and the last weights."""
    result = fit(make_config(**settings), make_images(), folder, ALONE)
    weights = torch.load(folder / "state.pt", weights_only=True)["network"]
    return [metrics.train_loss for metrics in result.history], weights


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_batch_in_parts_learns_what_the_whole_batch_does(tmp_path, parts):
    whole, weights = train(tmp_path / "whole", network="plain")
    losses, same_weights = train(tmp_path / "parts", network="plain", engine={"parts": parts})
    assert losses == pytest.approx(whole, abs=1e-6)
    torch.testing.assert_close(same_weights, weights, atol=1e-6, rtol=0)


def test_a_batch_that_memory_does_not_hold_is_computed_in_parts(tmp_path, capsys):
    whole, weights = train(tmp_path / "whole", network="plain")
    assert capsys.readouterr().out == ""
    losses, same_weights = train(tmp_path / "greedy", network="greedy")
    lines = capsys.readouterr().out.splitlines()
    assert ["in 2 parts" in line for line in lines] == [True, False]
    assert ["in 4 parts" in line for line in lines] == [False, True]
    assert losses == pytest.approx(whole, abs=1e-6)
    torch.testing.assert_close(same_weights, weights, atol=1e-6, rtol=0)


class Full(PlainNetwork):
    """Has memory for nothing once two epochs of three steps are done."""

    steps = 0

    def forward(self, images_BCHW):
        if self.training:
            Full.steps += 1
            if Full.steps > 6:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(images_BCHW)


def test_memory_for_less_than_two_images_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "full", Full)
    monkeypatch.setattr(Full, "steps", 0)
    config = make_config(network="full", epochs=3)
    with pytest.raises(TrainingError, match=r"does not hold 2 images of a batch at once; lower --set batch_size"):
        fit(config, make_images(), tmp_path, ALONE)
    state = load_state(tmp_path, config.sha256())
    assert (state.epoch, len(state.history)) == (2, 2)
    monkeypatch.setattr(Full, "steps", -100)
    assert [metrics.epoch for metrics in fit(config, make_images(), tmp_path, ALONE).history] == [1, 2, 3]


def test_memory_that_the_optimiser_lacks_is_one_line(tmp_path, monkeypatch):
    def fill(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "zeros_like", fill)  # AdamW makes its state with the first step
    with pytest.raises(TrainingError, match=r"does not hold what the optimiser keeps"):
        fit(make_config(optimizer="adamw", momentum=0), make_images(), tmp_path, ALONE)


def test_clipping_limits_a_step(tmp_path):
    settings = {"network": "plain", "epochs": 1, "momentum": 0, "weight_decay": 0, "learning_rate": 1.0}
    images = make_images(train=8)  # one step

    def move(**more):
        config = make_config(**settings, **more)
        fit(config, images, tmp_path / str(len(more)), ALONE)
        after = torch.load(tmp_path / str(len(more)) / "state.pt", weights_only=True)["network"]
        torch.manual_seed(config.seed)
        before = PlainNetwork(4).state_dict()
        return torch.cat([(after[name] - before[name]).flatten() for name in before]).norm()

    free, clipped = move(), move(clip_norm=0.01)
    assert free > 0.05
    assert clipped == pytest.approx(0.01, rel=1e-3)


class LayoutWatcher(TinyNetwork):
    """Notes how its images lie in memory."""

    seen: ClassVar[set[bool]] = set()

    def forward(self, images_BCHW):
        self.seen.add(images_BCHW.is_contiguous(memory_format=torch.channels_last))
        return super().forward(images_BCHW)


@pytest.mark.parametrize(("memory_format", "is_last"), [("auto", True), ("channels_last", True), ("contiguous", False)])
def test_images_lie_in_memory_as_they_are_to(tmp_path, monkeypatch, memory_format, is_last):
    monkeypatch.setitem(NETWORKS, "watching", LayoutWatcher)
    monkeypatch.setattr(LayoutWatcher, "seen", set())
    train(tmp_path, network="watching", epochs=1, engine={"memory_format": memory_format})
    assert LayoutWatcher.seen == {is_last}


def test_memory_formats_and_bfloat16_learn_the_same(tmp_path):
    expected, _ = train(tmp_path / "default", learning_rate=0.01)
    contiguous, _ = train(tmp_path / "contiguous", learning_rate=0.01, engine={"memory_format": "contiguous"})
    half, _ = train(tmp_path / "half", learning_rate=0.01, engine={"precision": "bfloat16"})
    assert contiguous == pytest.approx(expected, rel=1e-4)
    assert half == pytest.approx(expected, rel=2e-2)
    assert half != expected


def test_what_is_chosen_on_a_cpu():
    engine = choose_engine(make_config(), ALONE)
    assert (engine.precision, engine.memory_format, engine.compile) == (torch.float32, torch.channels_last, "off")
    assert engine.describe() == "float32, channels last, eager"
    slow = {"precision": "bfloat16", "memory_format": "contiguous", "compile": "on", "parts": 4}
    assert (
        choose_engine(make_config(engine=slow), ALONE).describe() == "bfloat16, contiguous, compiled, batch in 4 parts"
    )


@pytest.mark.parametrize(
    ("has_avx512_bf16", "has_amx", "chosen"),
    [
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(monkeypatch, has_avx512_bf16, has_amx, chosen):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    assert choose_engine(make_config(engine={"precision": "auto"}), ALONE).precision is chosen
    assert choose_engine(make_config(), ALONE).precision is torch.float32
    assert choose_engine(make_config(engine={"precision": "bfloat16"}), ALONE).precision is torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "processes", "line"),
    [
        ({"compile": "cuda_graphs"}, 1, r"needs a CUDA device and this run is on cpu; give --set engine.compile=on"),
        ({"compile": "on"}, 2, r"needs one process and there are 2; leave it out"),
        ({}, 3, r"a batch of 8 cannot be shared evenly by 3 processes; change --set batch_size"),
        ({"parts": 5}, 1, r"engine.parts=5 leaves fewer than 2 of 8 images for a part.*at most 4 parts are allowed"),
        ({"parts": 3}, 2, r"engine.parts=3 leaves fewer than 2 of 4 images for a part.*at most 2 parts are allowed"),
    ],
)
def test_what_the_machine_lacks_is_one_line(settings, processes, line):
    with pytest.raises(UsageError, match=line):
        choose_engine(make_config(engine=settings), Processes(CPU, count=processes))


def test_a_missing_compiler_is_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"needs the C\+\+ compiler no-such-compiler, which is not installed"):
        choose_engine(make_config(engine={"compile": "on"}), ALONE)


@pytest.mark.slow
def test_compiled_code_learns_the_same_and_is_used_again(tmp_path):
    from torch._dynamo.utils import counters

    expected, _ = train(tmp_path / "eager", epochs=2, learning_rate=0.01)
    counters.clear()
    compiled, _ = train(tmp_path / "first", epochs=2, learning_rate=0.01, engine={"compile": "on"})
    graphs = counters["stats"]["unique_graphs"]
    again, _ = train(tmp_path / "second", epochs=2, learning_rate=0.01, seed=1, engine={"compile": "on"})
    assert compiled == pytest.approx(expected, rel=1e-4)
    assert graphs > 0
    assert counters["stats"]["unique_graphs"] == graphs
    assert again != compiled
