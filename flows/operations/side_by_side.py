"""Runs of a study side by side: which may begin, their lines, their end.

Where they are trained is a `Runner`'s: processes of this machine (`run_processes.py`), or nodes of Ray (`ray_runs.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from flows.experiments.pretrained import name_start
from flows.experiments.training import fail, find_outcome, print_interrupted
from flows.operations.runner import Runner, RunRequest
from flows.printing.summaries import Outcome
from flows.printing.tables import print_line
from model_code.recipes.catalog import get_recipe
from model_code.settings import load_settings
from model_code.training.device import name_device
from model_code.training.interruption import InterruptionWatcher
from model_code.training.run_folder import AnyConfig

SECONDS_BETWEEN_LOOKS = 0.2


def train_side_by_side(
    configs: Sequence[AnyConfig],
    runner: Runner,
    hold_device: Callable[[Path, str], AbstractContextManager[None]],
    open_parent: Callable[[AnyConfig], str | None] | None = None,
) -> list[Outcome]:
    """Return one outcome for each config, in order, as `train_all` does.

    The devices are held once, by this process, from the first run that is trained until the last one ends: a lock of
    each run's own would let one at a time train, and a lock that several may share would let a second study in between.
    The runs need not hold it too, since a runner's end with this process.

    Args:
        configs: Settings of every run.
        runner: Trains them.
        hold_device: Holds a device for this process alone; takes the folder of locks and the kind of device.
        open_parent: Returns the MLflow run above a run; None for offline runs.

    Raises:
        KeyboardInterrupt: A signal came; every run was stopped after its step, and a line says what is kept.
    """
    return _Study(configs, runner, open_parent).train(hold_device)


class _Study:
    """Runs of a study by their place in it: waiting, in training, done."""

    def __init__(
        self, configs: Sequence[AnyConfig], runner: Runner, open_parent: Callable[[AnyConfig], str | None] | None
    ) -> None:
        self._configs, self._runner, self._open_parent = configs, runner, open_parent
        self._waiting = list(range(len(configs)))
        self._training: set[int] = set()
        self._outcomes: dict[int, Outcome] = {}
        # What threads of runs have to tell: only this thread prints, so that lines stay whole.
        self._told: SimpleQueue[tuple[int, str | Outcome | Exception | None]] = SimpleQueue()

    def train(self, hold_device: Callable[[Path, str], AbstractContextManager[None]]) -> list[Outcome]:
        count = len(self._configs)
        print(f"up to {self._runner.at_once} runs at once, {self._runner.describe()}", flush=True)
        try:
            with closing(self._runner):
                first = self._find_next()
                needs_device = first is not None and self._runner.is_local
                with (
                    _hold_devices(self._configs if needs_device else (), hold_device),
                    InterruptionWatcher(is_quiet=True) as watcher,
                ):
                    if first is not None:
                        self._begin(first)
                    self._follow(watcher)
        except KeyboardInterrupt:
            print_interrupted(f"with {count - len(self._outcomes)} of {count} runs to go", self._outcomes.values())
            raise
        return [self._outcomes[number] for number in range(count)]

    def _follow(self, watcher: InterruptionWatcher) -> None:
        """Print and begin until no run trains and none is left, or none trains after a signal."""
        is_stopping = False
        while self._training:
            with suppress(Empty):
                self._take(*self._told.get(timeout=SECONDS_BETWEEN_LOOKS))
            if watcher.wants_stop and not is_stopping:
                is_stopping = True
                print("stopping each run after its step", flush=True)
                self._runner.interrupt()
            while not is_stopping and len(self._training) < self._runner.at_once:
                number = self._find_next()
                if number is None:
                    break
                self._begin(number)

    def _find_next(self) -> int | None:
        """Return the first run that can begin now; those before it that need no training get their outcomes."""
        for number in tuple(self._waiting):
            if self._must_wait(number):
                continue
            config = self._configs[number]
            self._waiting.remove(number)
            print(f"[{number + 1}/{len(self._configs)}] {config.recipe}", flush=True)
            outcome = find_outcome(config, is_offline=self._open_parent is None)
            if not isinstance(outcome, Outcome):
                return number
            self._outcomes[number] = outcome
        return None

    def _must_wait(self, number: int) -> bool:
        """Whether a run before this one that is not done yet is the same, or of the recipe that this one starts from.

        Only those before it count, as one after another: the first one that waits can always begin.
        """
        config = self._configs[number]
        start = name_start(config)
        name = None if start is None else get_recipe(start).name
        return any(
            other.recipe == name or other == config
            for place, other in enumerate(self._configs[:number])
            if place not in self._outcomes
        )

    def _begin(self, number: int) -> None:
        config = self._configs[number]
        parent = None if self._open_parent is None else self._open_parent(config)
        request = RunRequest(config=config, is_offline=self._open_parent is None, parent_run_id=parent)
        self._training.add(number)
        Thread(target=self._train, args=(number, request), name=f"run {number + 1}", daemon=True).start()

    def _train(self, number: int, request: RunRequest) -> None:
        try:
            end: Outcome | Exception | None = self._runner.train(request, lambda line: self._told.put((number, line)))
        except Exception as error:  # noqa: BLE001 - one that fails does not stop the others
            end = error
        self._told.put((number, end))

    def _take(self, number: int, told: str | Outcome | Exception | None) -> None:
        config = self._configs[number]
        if isinstance(told, str):
            if line := told.removeprefix(f"{config.recipe}  ").strip():
                print_line(f"{config.recipe} seed {config.seed} | {line}")
            return
        self._training.remove(number)
        if told is not None:
            self._outcomes[number] = fail(config, told) if isinstance(told, Exception) else told


@contextmanager
def _hold_devices(
    configs: Sequence[AnyConfig], hold_device: Callable[[Path, str], AbstractContextManager[None]]
) -> Iterator[None]:
    with ExitStack() as held:
        # In one order, so that two studies never wait for each other.
        for device in sorted({name_device(config.device) for config in configs}):
            held.enter_context(hold_device(load_settings().locks_dir, device))
        yield
