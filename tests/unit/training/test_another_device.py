"""What differs between devices: random numbers of a resumed run, arithmetic, memory."""

import hashlib
import json
from typing import ClassVar

import pytest
import torch

from model_code.data import augmentation
from model_code.errors import TrainingError, UsageError
from model_code.evaluation.metrics import predict_logits
from model_code.models.networks import NETWORKS
from model_code.training import checkpoints, epoch_loop, supervised
from model_code.training.device import derive_seed, seed_everything
from model_code.training.engine import Engine, choose_engine
from model_code.training.processes import ALONE, Processes
from model_code.training.results import Callback
from model_code.training.supervised import fit
from tests.unit.training.fake_cuda import CUDA
from tests.unit.training.small_runs import CPU, TinyNetwork, make_config, make_images
from tests.unit.training.test_engine import GreedyNetwork, PlainNetwork

# Seed and offset of a CUDA generator; a CPU's has 5,056 bytes.
CUDA_STATE = torch.arange(16, dtype=torch.uint8)


class StopAfter(Callback):
    def __init__(self, epoch, step):
        self.last = (epoch, step)

    def on_step(self, epoch, step, steps, loss):
        self.wants_stop = (epoch, step) == self.last


def test_a_run_begun_on_cuda_goes_on_on_a_cpu_and_says_so(tmp_path, capsys):
    config, images = make_config(optimizer="adamw", momentum=0), make_images()

    def go_on(name):
        with pytest.raises(KeyboardInterrupt):
            fit(config, images, tmp_path / name, ALONE, [StopAfter(2, 2)])
        file = tmp_path / name / "state.pt"
        content = torch.load(file, weights_only=True)
        content |= {"generator": CUDA_STATE, "cuda_rng": CUDA_STATE}
        content["optimizer"]["param_groups"][0]["fused"] = True
        torch.save(content, file)
        capsys.readouterr()
        return fit(config, images, tmp_path / name, ALONE)

    first, second = go_on("first"), go_on("second")
    assert [metrics.epoch for metrics in first.history] == [1, 2, 3, 4]
    assert first.last_weights.read_bytes() == second.last_weights.read_bytes()
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "the run began on cuda and continues on cpu: order and augmentation are drawn anew, by seed 0, epoch 2 and "
        "step 2"
    )
    state = torch.load(tmp_path / "first" / "state.pt", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["fused"] is None
    assert state["cuda_rng"] is None


class CudaGenerator:
    """Takes the state of its own kind only, as a CUDA generator does."""

    device = CUDA
    seed = None

    def set_state(self, state):
        assert len(state) == len(CUDA_STATE), "RNG state is wrong size"

    def manual_seed(self, seed):
        self.seed = seed


def test_a_run_begun_on_a_cpu_goes_on_on_cuda(tmp_path):
    config = make_config(epochs=1)
    fit(config, make_images(), tmp_path, ALONE)
    generator = CudaGenerator()
    change = epoch_loop.restore_randomness(checkpoints.load_state(tmp_path, config.sha256()), generator, 3)
    assert generator.seed == derive_seed(3, 1, 0)
    assert change.describe() == "cpu to cuda after epoch 1"
    assert len({derive_seed(*place) for place in ((3, 1, 0), (3, 0, 1), (3, 1, 1), (4, 1, 0))}) == 4


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0)])
def test_another_device_is_printed_by_rank_0_only(tmp_path, capsys, rank, lines):
    config, images = make_config(epochs=1), make_images()
    fit(config, images, tmp_path, ALONE)
    content = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save(content | {"generator": CUDA_STATE, "cuda_rng": CUDA_STATE}, tmp_path / "state.pt")
    capsys.readouterr()
    loop = supervised._SupervisedLoop(config, images, tmp_path, ALONE, [], None, None)
    loop.processes = Processes(CPU, rank=rank, count=2)
    loop._resume()
    assert len(capsys.readouterr().out.splitlines()) == lines


@pytest.fixture
def arithmetic():
    """Put back what a seeding chooses."""
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = flags
    torch.use_deterministic_algorithms(is_deterministic)


@pytest.mark.usefixtures("arithmetic")
def test_tf32_is_off_in_cublas_and_cudnn_unless_it_is_asked_for():
    for has_tf32 in (False, True, False):
        torch.backends.cudnn.allow_tf32 = not has_tf32
        seed_everything(0, CPU, has_tf32=has_tf32)
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (has_tf32, has_tf32)


@pytest.mark.usefixtures("arithmetic")
def test_kernels_are_deterministic_or_the_fastest_and_the_engine_says_which(tmp_path):
    for is_fastest, words in ((False, "deterministic kernels"), (True, "fastest kernels")):
        engine = Engine(CUDA, torch.bfloat16, torch.channels_last, "off", 1, is_fastest=is_fastest)
        assert words in engine.describe()
        fit(
            make_config(epochs=1, engine={"kernels": "fastest" if is_fastest else "deterministic"}),
            make_images(),
            tmp_path / str(is_fastest),
            ALONE,
        )
        assert torch.backends.cudnn.benchmark is is_fastest
        assert torch.are_deterministic_algorithms_enabled()  # on a CPU always
    assert "tf32" in Engine(CUDA, torch.float32, torch.channels_last, "off", 1, has_tf32=True).describe()
    with pytest.raises(UsageError, match=r"engine\.precision=tf32 needs a CUDA device and this run is on cpu"):
        choose_engine(make_config(engine={"precision": "tf32"}), ALONE)


def test_settings_younger_than_recorded_hashes_leave_them_where_they_are_the_default():
    config = make_config()
    before = config.model_dump(mode="json")
    assert (before["engine"].pop("kernels"), before["engine"].pop("readers")) == ("deterministic", 1)
    assert (before.pop("backbone_rate_factor"), before.pop("frozen_epochs")) == (1, 0)
    assert config.sha256() == hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()
    assert config.sha256() != make_config(engine={"kernels": "fastest"}).sha256()


class PrecisionWatcher(TinyNetwork):
    """Notes the precision of its convolution in training and in validation."""

    seen: ClassVar[set[tuple[bool, torch.dtype]]] = set()

    def forward(self, images_BCHW):
        self.seen.add((self.training, self.body[0](images_BCHW).dtype))
        return super().forward(images_BCHW)


def test_validation_computes_in_the_precision_of_the_training(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "watching", PrecisionWatcher)
    PrecisionWatcher.seen.clear()
    fit(make_config(network="watching", epochs=1, engine={"precision": "bfloat16"}), make_images(), tmp_path, ALONE)
    assert PrecisionWatcher.seen == {(True, torch.bfloat16), (False, torch.bfloat16)}


def test_parts_that_memory_asked_for_are_kept_and_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(NETWORKS, "greedy", GreedyNetwork)
    config, images = make_config(network="greedy", epochs=2), make_images()
    with pytest.raises(KeyboardInterrupt):
        fit(config, images, tmp_path, ALONE, [StopAfter(1, 2)])
    assert checkpoints.load_state(tmp_path, config.sha256()).parts == 4
    monkeypatch.setitem(NETWORKS, "greedy", PlainNetwork)  # memory for all: but BatchNorm must go on as it began
    capsys.readouterr()
    assert fit(config, images, tmp_path, ALONE).parts == 4
    assert capsys.readouterr().out == ""


def test_memory_that_augmentation_lacks_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    config, images = make_config(), make_images()
    crop, calls = augmentation.crop_and_flip, []

    def fill(*given, **options):
        calls.append(1)
        if len(calls) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return crop(*given, **options)

    monkeypatch.setattr(supervised, "crop_and_flip", fill)
    with pytest.raises(TrainingError, match=r"does not hold the augmentation of 8 images at once; lower --set batch"):
        fit(config, images, tmp_path, ALONE)
    assert checkpoints.load_state(tmp_path, config.sha256()).epoch == 1


class Narrow(TinyNetwork):
    """Has memory for five images at once."""

    def forward(self, images_BCHW):
        if len(images_BCHW) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(images_BCHW)


def test_validation_takes_fewer_images_at_once_where_memory_is_full(capsys):
    torch.manual_seed(0)
    network = Narrow(4).eval()
    images_BCHW = torch.rand(23, 3, 8, 8)
    logits_NK = predict_logits(network, images_BCHW)
    assert torch.equal(logits_NK, torch.cat([network(part).detach() for part in images_BCHW.split(3)]))
    assert "from now on 3 images are evaluated at once" in capsys.readouterr().out.splitlines()[-1]
