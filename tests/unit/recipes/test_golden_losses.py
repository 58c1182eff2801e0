"""Twenty steps of every recipe that trains, on drawn images, as they were written down once in golden_losses.json.

Whoever changes the arithmetic changes them. If that is meant, or a recipe is new:
`python -m tests.unit.recipes.test_golden_losses [NAME...]`.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from model_code.recipes.catalog import RECIPES, build_config, has_setting
from model_code.training.images import PretrainingImages
from model_code.training.pretraining import pretrain
from model_code.training.processes import ALONE
from model_code.training.results import Callback
from model_code.training.supervised import fit
from tests.unit.training.small_runs import draw_images, make_images

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).with_name("golden_losses.json")
EPOCHS, STEPS, BATCH = 2, 10, 4
TRAINED = [name for name in RECIPES if has_setting(name, "epochs")]
# The same sums in another order: equal libraries on equal instruction sets give equal bits, others drift apart.
HERE = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, 1 thread"


class LossRecorder(Callback):
    def __init__(self):
        self.losses = []

    def on_step(self, epoch, step, steps, loss):
        self.losses.append(loss)


def take_steps(name, run_dir):
    """Return the losses of the recipe's first steps: in float32, with a smaller batch, fewer epochs, smaller images."""
    changes = {"epochs": EPOCHS, "batch_size": BATCH, "warmup_epochs": 1, "knn_neighbours": 4, "linear.epochs": 1}
    changes |= {"engine.precision": "float32", "pretrained_weights": None, "pseudo_label_confidence": None}
    changes |= {"views.image_size": 32, "linear.warmup_epochs": 0}
    if build_config(name).dataset.startswith("food"):
        changes |= {"image_size": 64, "views.image_size": 64}
    config = build_config(name, changes={key: value for key, value in changes.items() if has_setting(name, key)})
    side = 64 if config.dataset.startswith("food") else 32
    recorder = LossRecorder()
    if config.kind == "simsiam":
        few = draw_images(8, side=side)
        learned = draw_images(STEPS * BATCH, side=side).images_NHWC
        pretrain(config, PretrainingImages(learned, few, few, few, None, tuple("abcd")), run_dir, ALONE, [recorder])
    else:
        fit(config, make_images(train=STEPS * BATCH, validation=4, side=side), run_dir, ALONE, [recorder])
    return recorder.losses


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", TRAINED)
def test_twenty_steps_are_those_written_down(name, golden, tmp_path):
    losses, written = take_steps(name, tmp_path), golden["losses"][name]
    assert len(losses) == EPOCHS * STEPS == len(written)
    if golden.get("machines", {}).get(name, golden["machine"]) == HERE:
        assert losses == written
    else:
        # Another processor rounds otherwise, which grows: 0.7 % in the third step without AVX-512.
        assert losses[:2] == pytest.approx(written[:2], rel=1e-3)
        assert losses[2] == pytest.approx(written[2], rel=2e-2)


def test_every_recipe_that_trains_is_written_down(golden):
    assert sorted(golden["losses"]) == sorted(TRAINED)


def write(names: list[str]) -> None:
    """Write the losses of this machine down, of some recipes or of all."""
    torch.set_num_threads(1)
    golden = json.loads(GOLDEN.read_text()) if names else {"machine": HERE, "losses": {}}
    for name in names or TRAINED:
        with tempfile.TemporaryDirectory() as run_dir:
            losses = golden["losses"][name] = take_steps(name, Path(run_dir))
        if golden["machine"] != HERE:
            golden.setdefault("machines", {})[name] = HERE
        elif "machines" in golden:
            golden["machines"].pop(name, None)
        print(name, losses[0], losses[-1])
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    write(sys.argv[1:])
