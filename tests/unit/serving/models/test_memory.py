"""Resident memory of a process that answers batches of every size, and of one whose model is swapped over and over."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
MAX_GROWTH_BYTES = 6_000_000
# In a process of its own: what other tests leave to the allocator would hide growth.
_HEAD = """
import json, random, sys
from pathlib import Path
import numpy as np, psutil
from serving.models.classifier import Classifier
from serving.models.model_set import ModelSet
from tests.unit.serving.tiny_bundle import make_bundle, point_at

def measure():
    return psutil.Process().memory_info().rss

bundles_dir, seen = Path(sys.argv[1]), []
"""
_SHAPES = """
size = 96
folder = make_bundle(bundles_dir, manifest={"image_size": size, "resize_size": size}, image_size=size)
classifier = Classifier(folder, "1", threads=1)
images_NHWC = np.zeros((64, size, size, 3), dtype=np.uint8)
for round in range(6):
    for position, count in enumerate([64, *random.Random(round).sample(range(1, 65), 64)]):
        assert len(classifier.classify(images_NHWC[:count])) == count
        if position == 8 or (round and position == 64):
            seen.append(measure())
print(json.dumps(seen))
"""
_SWAPS = """
folders = [make_bundle(bundles_dir, softness=4000.0 + 500 * number) for number in range(4)]
models = ModelSet(bundles_dir, threads=1)
for number in range(1, 121):
    point_at(bundles_dir, "cifar10", str(number), folders[number % 4])
    models.refresh()
    model = models.select("cifar10")
    assert model.version == str(number)
    model.classify(np.zeros((8, 8, 8, 3), dtype=np.uint8))
    if number % 20 == 0:
        seen.append(measure())
print(json.dumps(seen))
"""


def measure(code: str, bundles_dir: Path) -> list[int]:
    """Return the resident bytes that a script measured."""
    command = [sys.executable, "-P", "-c", _HEAD + code, str(bundles_dir)]
    run = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_memory_does_not_grow_with_the_sizes_of_batches(tmp_path):
    first, *_, last = measure(_SHAPES, tmp_path / "bundles")
    assert last - first < MAX_GROWTH_BYTES


def test_memory_does_not_grow_with_swaps(tmp_path):
    first, *_, last = measure(_SWAPS, tmp_path / "bundles")
    assert last - first < MAX_GROWTH_BYTES
