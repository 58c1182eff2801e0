import platform
import re
import subprocess
from pathlib import Path

import onnx
import torch

from model_code.tracking.provenance import LIBRARIES, read_git_sha, read_versions


def test_versions_are_those_of_the_running_libraries():
    versions = read_versions()
    assert versions["python"] == platform.python_version()
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["onnx"] == onnx.__version__
    assert set(versions) - {"python"} <= set(LIBRARIES)
    assert all(re.match(r"\d+\.\d+", version) for version in versions.values())


def test_the_commit_is_that_of_the_code():
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    expected = done.stdout.strip() if done.returncode == 0 else "unknown"
    assert read_git_sha().removesuffix("-dirty") == expected
