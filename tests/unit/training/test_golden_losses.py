"""Ten steps of a real network whose losses were written down once: whoever changes the arithmetic changes them."""

import pytest

from model_code.training.results import Callback
from model_code.training.run_folder import STATE_FILE
from model_code.training.supervised import fit
from tests.unit.training.small_runs import CPU, make_config, make_pictures

# torch 2.15. With other instruction sets or numbers of threads they differ by up to 2e-5; a larger learning rate
# would make rounding grow beyond 1e-4 within ten steps.
LOSSES = [
    1.5207143,
    1.4679209,
    1.3687264,
    1.5689372,
    1.4238029,
    1.3000159,
    1.3270398,
    1.5150306,
    1.4387276,
    1.3726193,
]


class LossRecorder(Callback):
    def __init__(self):
        self.losses = []

    def on_step(self, epoch, step, steps, loss):
        self.losses.append(loss)


def test_losses_are_those_written_down(tmp_path):
    config = make_config(network="resnet18_improved", epochs=1, batch_size=8, learning_rate=1e-5, crop_padding_pixels=4)
    recorder = LossRecorder()
    result = fit(config, make_pictures(train=80, validation=4, side=32), tmp_path, CPU, [recorder])
    for file in (result.best_weights, result.last_weights, tmp_path / STATE_FILE):
        file.unlink()
    assert recorder.losses == pytest.approx(LOSSES, rel=1e-4)
