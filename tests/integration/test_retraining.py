"""True labels that people gave make the next model better, and the ledger says why it was trained."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from model_code.release.changes import read_ledger
from model_code.settings import load_settings
from model_code.tracking.store import open_store
from serving.bundle.store import read_champion
from serving.observation.feedback import FeedbackStore
from tests.unit.serving.tiny_bundle import encode

NAME, DATASET, SIDE = "colours", "colours", 16
COLOURS = {"tomato": (170, 90, 90), "lettuce": (90, 170, 90), "plum": (90, 90, 170), "grey bread": (130, 130, 130)}


def draw(generator, colour):
    mean = np.array(colour) + generator.normal(0, 22, 3)
    pixels = mean + generator.normal(0, 20, (SIDE, SIDE, 3))
    return encode(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    """Other tests release models of the same name in the shared one."""
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def champion(darkroom, own_home, tmp_path):
    """A model that is nearly always wrong: each class was trained on the colour of another."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 100)):
        for label, other in zip(COLOURS, [*list(COLOURS)[1:], *list(COLOURS)[:1]], strict=True):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(draw(generator, COLOURS[other if split == "train" else label]))
    darkroom("data", "add", DATASET, "--from", tmp_path / "pictures", "--image-size", SIDE)
    options = ("--set", f"dataset={DATASET}", "--set", "batch_size=20", "--epochs", 4, "--seed", 3)
    trained = darkroom("train", "resnet18_cifar10_exp2", *options)
    assert trained.status == 0, trained.err
    run_id = trained.out.split("run ")[1][:32]
    released = darkroom("release", run_id, "--as", NAME, "--mode", "forced", "--why", "for the test")
    assert released.status == 0, released.err
    return run_id


def test_feedback_is_trained_on_and_the_ledger_says_why(champion, own_home):
    from flows.scheduled import retrain

    generator = np.random.default_rng(1)
    store = FeedbackStore(own_home / "feedback")
    for label, colour in COLOURS.items():
        for _ in range(150):
            data = draw(generator, colour)
            store.save(NAME, label, tuple(COLOURS), hashlib.sha256(data).hexdigest(), data)
    why = "people gave the true labels of 600 more images to colours, 200 are enough"
    assert retrain(name=NAME, mode="enabled", why=why, return_state=True).is_completed()
    reason = f"{why}; with 600 images of feedback among the training images, data "
    pointer, _, manifest = read_champion(own_home / "bundles", NAME)
    assert manifest.run_id != champion
    assert manifest.dataset == f"{DATASET}-with-feedback"
    assert pointer.change.why.startswith(reason)
    assert read_ledger(own_home / "bundles", NAME)[-1].why == pointer.change.why
    tags = open_store(load_settings()).get_run(manifest.run_id).data.tags
    assert tags["retrained_because"] == pointer.change.why
    # Without anything new there is nothing to train.
    checkpoints = sorted((own_home / "checkpoints").iterdir())
    assert retrain(name=NAME, why="drift", return_state=True).is_completed()
    assert sorted((own_home / "checkpoints").iterdir()) == checkpoints
    assert read_champion(own_home / "bundles", NAME)[0] == pointer
    assert open_store(load_settings()).get_run(manifest.run_id).data.tags == tags
