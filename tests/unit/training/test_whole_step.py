"""`engine.compile=step`: on a CPU the same bits as a step of single batches; what a recording replays, and when."""

from contextlib import contextmanager

import pytest
import torch

from model_code.data.view_settings import ViewSettings
from model_code.models.networks import NETWORKS
from model_code.training import pretraining
from model_code.training.engine import choose_engine
from model_code.training.images import PretrainingImages
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.processes import ALONE
from model_code.training.supervised import fit
from model_code.training.whole_step import STEPS_BEFORE_RECORDING, WholeStep
from tests.unit.training.small_runs import FAST, build_tiny_fastnet, draw_images, make_config, make_images
from tests.unit.training.test_another_device import StopAfter

STEP = {"compile": "step"}
CONFIGS = {
    "sgd, cosine, average": {"schedule": "cosine", "warmup_epochs": 1, "is_nesterov": True, "ema_decay": 0.9},
    "adamw, clipped": {"optimizer": "adamw", "momentum": 0, "clip_norm": 1.0},
    "mixed, erased": {"cutmix_alpha": 1.0, "mixup_alpha": 0.2, "erasing_probability": 0.5, "cutout_pixels": 2},
    "balanced": {"sampling": "balanced", "class_weights": "balanced"},
    "fast": {**FAST, "network": "fastnet_tiny", "whitening_bias_epochs": 1},
    "parts": {"engine": {"parts": 2}},
}


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    monkeypatch.setitem(NETWORKS, "fastnet_tiny", build_tiny_fastnet)


def make(name, **more):
    settings = {"epochs": 3, **CONFIGS[name], **more}
    return make_config(**settings)


def make_whole(name):
    return make(name, engine={**CONFIGS[name].get("engine", {}), **STEP})


def get_losses(result):
    return [(metrics.train_loss, metrics.train_accuracy, metrics.validation_loss) for metrics in result.history]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cpu_learns_the_same_bits(name, tmp_path):
    images = make_images(side=32) if name == "fast" else make_images()
    expected = fit(make(name), images, tmp_path / "batches", ALONE)
    whole = fit(make_whole(name), images, tmp_path / "whole", ALONE)
    assert get_losses(whole) == get_losses(expected)
    assert whole.last_weights.read_bytes() == expected.last_weights.read_bytes()


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path):
    config, images = make_whole("sgd, cosine, average"), make_images()
    expected = fit(config, images, tmp_path / "whole", ALONE)
    with pytest.raises(KeyboardInterrupt):
        fit(config, images, tmp_path / "parts", ALONE, [StopAfter(2, 2)])
    parts = fit(config, images, tmp_path / "parts", ALONE)
    assert get_losses(parts) == get_losses(expected)
    assert parts.last_weights.read_bytes() == expected.last_weights.read_bytes()


def test_simsiam_learns_the_same_bits(tmp_path):
    def run(folder, **engine):
        config = SimSiamConfig(
            recipe="tiny",
            network="tiny",
            embedding_width=32,
            bottleneck_width=8,
            views=ViewSettings(image_size=32),
            epochs=2,
            batch_size=16,
            knn_neighbours=5,
            monitor_every_epochs=1,
            engine=engine,
        )
        few = draw_images(16, seed=1, side=32)
        learned = draw_images(48, side=32).images_NHWC
        images = PretrainingImages(learned, few, few, few, None, tuple("abcd"))
        history = pretraining.pretrain(config, images, folder, ALONE).history
        return [(metrics.loss, metrics.feature_std, metrics.knn_accuracy) for metrics in history]

    assert run(tmp_path / "whole", **STEP) == run(tmp_path / "batches")


class Recording:
    """Stands in for a recorded graph: it computes what the recording step would have."""

    def __init__(self, whole):
        self.whole = whole

    def replay(self):
        self.whole.log.append("replayed")
        WholeStep._run(self.whole, False)


class Recorder(WholeStep):
    """Records on a CPU, where a recording is the step itself."""

    log = []  # noqa: RUF012

    def __init__(self, *given):
        super().__init__(*given)
        self._is_recordable = True

    def _run(self, is_last):
        self.log.append("last" if is_last else "eager")
        super()._run(is_last)

    def _record(self, prepare):
        self.log.append("recorded")
        self._graph = Recording(self)


def test_steps_are_replayed_after_the_first_and_recorded_anew_where_other_weights_are_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("model_code.training.epoch_loop.WholeStep", Recorder)
    monkeypatch.setattr(Recorder, "log", [])
    images = make_images(train=56, side=32)  # seven steps
    expected = fit(make("fast"), images, tmp_path / "batches", ALONE)
    whole = fit(make_whole("fast"), images, tmp_path / "whole", ALONE)
    assert get_losses(whole) == get_losses(expected)
    assert whole.last_weights.read_bytes() == expected.last_weights.read_bytes()
    assert whole.engine.endswith("; 12 of 21 steps replayed")
    # The whitening's bias is trained in the first epoch only.
    begun = ["eager"] * STEPS_BEFORE_RECORDING + ["recorded"]
    assert Recorder.log == [*begun, *["replayed"] * 3, "last"] * 2 + [*["replayed"] * 6, "last"]


def test_what_cannot_be_recorded_goes_on_eagerly_and_says_so_once(tmp_path, monkeypatch, capsys):
    def refuse():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr("model_code.training.epoch_loop.WholeStep", OnCpu)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", refuse)
    images = make_images(train=40)
    expected = fit(make("parts"), images, tmp_path / "batches", ALONE)
    whole = fit(make_whole("parts"), images, tmp_path / "whole", ALONE)
    assert get_losses(whole) == get_losses(expected)
    assert whole.engine == "float32, channels last, eager, batch in 2 parts; 0 of 15 steps replayed"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "engine.compile=step: this step cannot be recorded, training goes on without it (CUDA out of memory"
    )


class FailingGraph:
    """Stands in for a CUDA graph whose recording fails at its end, when the host has done the step."""

    def register_generator_state(self, generator):
        pass


@contextmanager
def fail_at_the_end(graph, stream, capture_error_mode):
    yield
    raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore")


class OnCpu(WholeStep):
    """Tries to record on a CPU, where a failed recording has computed the step."""

    def __init__(self, *given):
        super().__init__(*given)
        self._is_recordable = True


@pytest.mark.parametrize("name", CONFIGS)
def test_a_recording_that_fails_leaves_no_trace(name, tmp_path, monkeypatch, capsys):
    images = make_images(train=56, side=32)
    expected = fit(make(name), images, tmp_path / "batches", ALONE)
    monkeypatch.setattr("model_code.training.epoch_loop.WholeStep", OnCpu)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FailingGraph)
    monkeypatch.setattr(torch.cuda, "graph", fail_at_the_end)
    capsys.readouterr()
    whole = fit(make_whole(name), images, tmp_path / "whole", ALONE)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "engine.compile=step: this step cannot be recorded, training goes on without it (CUDA error: operation failed "
        "due to a previous error during capture)"
    )
    assert get_losses(whole) == get_losses(expected)
    assert whole.last_weights.read_bytes() == expected.last_weights.read_bytes()


def test_streamed_images_say_that_each_step_is_computed_eagerly(tmp_path, capsys):
    images = make_images(train=40)
    expected = fit(make_config(engine={"pictures": "streamed"}), images, tmp_path / "batches", ALONE)
    assert capsys.readouterr().out == ""
    streamed = fit(make_config(engine=STEP | {"pictures": "streamed"}), images, tmp_path / "whole", ALONE)
    assert get_losses(streamed) == get_losses(expected)
    assert streamed.engine == expected.engine == "float32, channels last, eager"
    assert "the images are streamed, so each step is computed eagerly" in capsys.readouterr().out


def test_the_engine_says_how_a_step_is_computed():
    assert choose_engine(make_config(engine=STEP), ALONE).describe() == "float32, channels last, whole step, eager"
