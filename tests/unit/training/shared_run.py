"""What tests/unit/training/test_processes.py has torchrun start, and runs in one process beside it.

Usage: python -m tests.unit.training.shared_run FOLDER [supervised|simsiam|fast|half|plain|dies|stops]...
"""

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from model_code.data.view_settings import ViewSettings
from model_code.errors import TrainingError
from model_code.models.networks import NETWORKS
from model_code.training.images import PretrainingImages
from model_code.training.interruption import InterruptionWatcher
from model_code.training.pretraining import pretrain
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.processes import Processes, join_processes
from model_code.training.results import Callback
from model_code.training.supervised import fit
from tests.unit.training.small_runs import (
    CPU,
    FAST,
    TinyNetwork,
    build_tiny_fastnet,
    draw_images,
    make_config,
    make_images,
)


class LossRecorder(Callback):
    def __init__(self):
        self.losses = []

    def on_step(self, epoch, step, steps, loss):
        self.losses.append(loss)


class Killer(Callback):
    """Kills the second process in the middle of the second epoch, or asks it to stop there."""

    def __init__(self, processes, signum):
        self.rank, self.signum = processes.rank, signum

    def on_step(self, epoch, step, steps, loss):
        if (self.rank, epoch, step) == (1, 2, 2):
            signal.raise_signal(self.signum)


def supervised(folder: Path, processes: Processes) -> dict[str, object]:
    """Six epochs of a plateau schedule that falls, with a moving average and uneven validation shares."""
    recorder = LossRecorder()
    config = make_config(
        schedule="plateau", patience_epochs=0, decay_factor=0.5, ema_decay=0.9, epochs=6, learning_rate=1.0
    )
    result = fit(config, make_images(train=40, validation=21, noise=120), folder, processes, [recorder])
    return {"losses": recorder.losses, "history": [asdict(metrics) for metrics in result.history]}


def simsiam(folder: Path, processes: Processes) -> dict[str, object]:
    """A run whose memory and validation images do not divide evenly."""
    config = SimSiamConfig(
        recipe="tiny",
        network="tiny",
        embedding_width=32,
        bottleneck_width=8,
        views=ViewSettings(image_size=32),
        epochs=2,
        batch_size=32,
        base_learning_rate=0.5,
        monitor_every_epochs=1,
        knn_neighbours=5,
    )
    learned, memory, asked = (draw_images(count, seed=seed, side=32) for seed, count in enumerate((128, 33, 27)))
    images = PretrainingImages(learned.images_NHWC, memory, asked, memory, None, tuple("abcd"))
    recorder = LossRecorder()
    result = pretrain(config, images, folder, processes, [recorder])
    history = [asdict(metrics) for metrics in result.history]
    return {"losses": recorder.losses, "history": history, "untrained": result.untrained_knn_accuracy}


def plain(folder: Path, processes: Processes, **settings: object) -> dict[str, object]:
    """A short run with CutMix, whose targets are shared too."""
    recorder = LossRecorder()
    config = make_config(cutmix_alpha=1.0, schedule="cosine", **settings)
    result = fit(config, make_images(), folder, processes, [recorder])
    return {"losses": recorder.losses, "history": [asdict(metrics) for metrics in result.history]}


def half(folder: Path, processes: Processes) -> dict[str, object]:
    """The same in bfloat16."""
    return plain(folder, processes, learning_rate=0.01, engine={"precision": "bfloat16"})


def fast(folder: Path, processes: Processes) -> dict[str, object]:
    """Five epochs with all that the fast recipes add."""
    recorder = LossRecorder()
    config = make_config(network="tiny_fastnet", **FAST, epochs=5, learning_rate=0.1)
    result = fit(config, make_images(train=24, side=12), folder, processes, [recorder])
    return {"losses": recorder.losses, "history": [asdict(metrics) for metrics in result.history]}


def dies(folder: Path, processes: Processes) -> dict[str, object]:
    """The second process is killed; the first one says so."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends it too, perhaps before it has noticed
    try:
        fit(make_config(), make_images(), folder, processes, [Killer(processes, signal.SIGKILL)])
    except TrainingError as error:
        return {"line": str(error)}
    return {}


def stops(folder: Path, processes: Processes) -> dict[str, object]:
    """A signal to the second process alone stops both after the same step."""
    recorder, config = LossRecorder(), make_config(cutmix_alpha=1.0, schedule="cosine")
    try:
        with InterruptionWatcher(is_patient=True, is_quiet=True) as watcher:
            fit(config, make_images(), folder, processes, [recorder, watcher, Killer(processes, signal.SIGTERM)])
    except KeyboardInterrupt:
        again = LossRecorder()
        result = fit(config, make_images(), folder, processes, [again])
        history = [asdict(metrics) for metrics in result.history]
        return {"first": recorder.losses, "then": again.losses, "history": history}
    return {}


def main() -> None:
    """Run what is named in the order of the names; the first process writes what came out."""
    torch.set_num_threads(1)
    NETWORKS.update(tiny=TinyNetwork, tiny_fastnet=build_tiny_fastnet)
    folder, *names = sys.argv[1:]
    with join_processes(CPU) as processes:
        for name in names:
            outcome = globals()[name](Path(folder) / name, processes)
            if processes.is_first:
                (Path(folder) / f"{name}.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
