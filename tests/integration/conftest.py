"""One DARKROOM_HOME for all integration tests, and the `darkroom` command, in this process or in one of its own."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from model_code.data.cache import PackedDataset
from model_code.data.sources.layout import DATASETS
from model_code.training.run_folder import RESULT_FILE, RunResult
from tests.unit.tracking.small_store import mlflow_given_back

COMMAND = str(Path(sys.executable).with_name("darkroom"))


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("darkroom-home")


@pytest.fixture(scope="session", autouse=True)
def environment(home):
    """Prefect reads its environment once, when it is imported: one home for the whole session.

    One thread, here and in the processes that tests start: with more, sums depend on how many there are.
    """
    kept, threads = dict(os.environ), torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        os.environ.pop(name, None)
    os.environ |= {"DARKROOM_HOME": str(home), "OMP_NUM_THREADS": "1"}
    yield
    os.environ.clear()
    os.environ.update(kept)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _mlflow_given_back():
    """A command in this process leaves its home's store in the environment, also for a test with another home."""
    with mlflow_given_back():
        yield


@pytest.fixture
def darkroom(capfd, monkeypatch) -> Callable[..., Done]:
    """Run the command in this process; what it prints and its exit status come back."""

    def run(*arguments: object) -> Done:
        from flows.cli import main

        monkeypatch.setattr(sys, "argv", ["darkroom", *map(str, arguments)])
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as exit_:
            status = exit_.code or 0
        captured = capfd.readouterr()
        # How long a busy machine was silent is no test's business but that of test_narration.py.
        lines = [line for line in captured.err.splitlines(keepends=True) if "s so far" not in line]
        return Done(status, captured.out, "".join(lines))

    return run


@contextmanager
def home_entered(home: Path) -> Iterator[None]:
    """Let this process work in another home than the session's while the block runs."""
    with pytest.MonkeyPatch.context() as patch, mlflow_given_back():
        patch.setenv("DARKROOM_HOME", str(home))
        yield


def make_environment(**variables: str) -> dict[str, str]:
    """Environment of a process with servers of its own, not those that the command in this process has started."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFECT_") and name != "MLFLOW_TRACKING_URI"
    }
    return kept | {"PYTHONUNBUFFERED": "1"} | variables


@pytest.fixture(scope="session")
def prefect_server(home, environment) -> dict[str, str]:
    """Variables for trainings in other processes, which then ask the Prefect server of this one and start none."""
    from flows.operations.orchestration import configure
    from model_code.settings import load_settings

    if "PREFECT_API_URL" not in os.environ:
        configure(load_settings())
    return {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}


@pytest.fixture
def start_darkroom() -> Callable[..., subprocess.Popen]:
    """Start the command as a process of its own, for tests that kill it."""
    started = []

    def start(*arguments: object, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [COMMAND, *map(str, arguments)],
            env=make_environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def read_until(process: subprocess.Popen, *wanted: str) -> list[str]:
    """Read a process's lines until each pattern was found in one of them."""
    lines, left = [], set(wanted)
    for line in process.stdout:
        lines.append(line)
        left -= {pattern for pattern in left if re.search(pattern, line)}
        if not left:
            return lines
    raise AssertionError(f"{left} never came:\n{''.join(lines)}")


@pytest.fixture(scope="module")
def few_shapes() -> Iterator[None]:
    """Draw a fifth of the images where this process packs `shapes`; commands reuse what is packed."""
    known = DATASETS["shapes"]
    draw = partial(known.draw, train_per_class=60, test_per_class=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "shapes", replace(known, draw=draw, counts={"train": 600, "test": 200}))
        yield


@pytest.fixture(scope="module", autouse=True)
def _brief_timings() -> Iterator[None]:
    """Time each variant of a release in this process for a moment only: no test looks at how fast it is."""
    from serving.bundle.timing import BATCH_SIZES, time_variant

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_variant, "__defaults__", (BATCH_SIZES, 0.02))
        yield


@pytest.fixture(scope="module")
def shapes(home, few_shapes) -> PackedDataset:
    """The drawn images, packed: a fifth of them."""
    from model_code.data.add import add_dataset
    from model_code.settings import load_settings

    settings = load_settings()
    return add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, progress=False).dataset


@pytest.fixture(scope="module")
def packed_tiny(request, tmp_path_factory) -> Path:
    """A home with small images and as many tiny recipes and epochs as COUNT and EPOCHS of the test's module say.

    tiny_1 starts from tiny_0.
    """
    from flows.api import add_data

    home = tmp_path_factory.mktemp("packed-tiny")
    with home_entered(home):
        add_data("shapes", image_size=16)
    (home / "recipes").mkdir()
    settings = 'dataset = "shapes"\nlimit_train = 100\nlimit_test = 40\nbatch_size = 20\n'
    settings += f"epochs = {request.module.EPOCHS}\n"
    for number in range(request.module.COUNT):
        more = 'pretrained_weights = "recipe:tiny_0"\n' if number == 1 else ""
        text = f'from = "resnet18_cifar10_exp3"\n[settings]\n{settings}{more}'
        (home / "recipes" / f"tiny_{number}.toml").write_text(text)
    return home


@pytest.fixture
def tiny_home(packed_tiny, tmp_path) -> Path:
    """A home with tiny recipes for one test."""
    return shutil.copytree(packed_tiny, tmp_path / "home")


@pytest.fixture(scope="module")
def tiny_weights(packed_tiny, tmp_path_factory) -> list[tuple[str, str, float]]:
    """What training one recipe after another leaves of the tiny recipes, as `read_weights` returns it."""
    from flows.jobs.study import TrainAll

    home = shutil.copytree(packed_tiny, tmp_path_factory.mktemp("one-by-one") / "home")
    with home_entered(home):
        TrainAll(only=("tiny_*",), offline=True).run()
    return read_weights(home)


def read_weights(home: Path) -> list[tuple[str, str, float]]:
    """Recipe, checksum of the weights and test accuracy of each finished run in a home."""
    results = (RunResult.model_validate_json(file.read_bytes()) for file in home.glob(f"checkpoints/*/{RESULT_FILE}"))
    return sorted((result.recipe, result.weights_sha256, result.metrics["test/accuracy"]) for result in results)
