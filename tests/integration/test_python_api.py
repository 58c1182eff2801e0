"""The code of docs/python.md as a script of its own, and scripts that start worker processes."""

import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_code.errors import DarkroomError
from serving.bundle.store import read_champion
from serving.errors import ServingError
from tests.integration.conftest import home_entered

ROOT = Path(__file__).parents[2]
[CODE] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
CHECK = """
import sys
assert "prefect" not in sys.modules, "Prefect was imported"
"""
UNGUARDED = """
import sys
from flows.api import add_data
from model_code.data import packing

print("begun", flush=True)
packing.count_workers = lambda count: 2
added = add_data("photos", "photos", image_size=16)
print(len(added.dataset.splits["train"].labels_N))
"""


def run(folder, code):
    (folder / "script.py").write_text(code)
    environment = os.environ | {"DARKROOM_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    environment = {name: value for name, value in environment.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_the_code_of_the_page_trains_releases_and_predicts(tmp_path):
    assert len([line for line in CODE.splitlines() if line]) <= 10
    Image.new("RGB", (32, 32), "red").save(tmp_path / "image.png")
    done = run(tmp_path, CODE + CHECK)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, released, predicted = done.stdout.splitlines()
    assert released.startswith("True ")
    assert released.endswith("no champion to compare with: promoted")
    _, _, manifest = read_champion(tmp_path / "home" / "bundles", "shapes")
    [accuracy] = re.findall(rf"^{manifest.run_id} (\S+)$", done.stdout, re.MULTILINE)
    assert 0 <= float(accuracy) <= 1
    *label, probability, is_confident = predicted.split()
    assert " ".join(label) in manifest.classes
    assert 0 < float(probability) <= 1
    assert is_confident in {"True", "False"}


def test_a_script_without_a_guard_may_start_workers(tmp_path):
    random = np.random.default_rng(0)
    for label in ("ant", "bee"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    done = run(tmp_path, UNGUARDED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["begun", "40"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ('train("nosuch")', "UsageError: no recipe 'nosuch'"),
        ('train("resnet18_cifar10_exp", data="nosuch")', "DataError: data set 'nosuch' is not in"),
        ('release("12345678", "shapes")', "TrainingError: "),
        ('Champion("nosuch")', "BundleError: "),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, call, message):
    with home_entered(tmp_path), pytest.raises((DarkroomError, ServingError)) as caught:
        exec(f"from flows.api import *\n{call}", {})
    [line] = traceback.format_exception_only(caught.value)
    assert message in line
    assert line.count("\n") == 1
