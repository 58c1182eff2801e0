"""Runs side by side, of a study or a sweep: which may begin, their lines, their end.

Where they are trained is a `Runner`'s: processes of this machine (`run_processes.py`), or nodes of Ray (`ray_runs.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from flows.experiments.pretrained import name_start
from flows.experiments.training import fail, find_outcome, print_interrupted
from flows.operations.runner import Runner, RunRequest
from flows.printing.live import LiveRuns, showing_runs
from flows.printing.summaries import Outcome
from model_code.errors import LostRunError
from model_code.recipes.catalog import get_recipe, read_own_files
from model_code.settings import load_settings
from model_code.training.device import name_device
from model_code.training.interruption import InterruptionWatcher
from model_code.training.run_folder import AnyConfig

SECONDS_BETWEEN_LOOKS = 0.2
HoldDevice = Callable[[Path, str], AbstractContextManager[None]]


def train_side_by_side(
    configs: Sequence[AnyConfig],
    runner: Runner,
    hold_device: HoldDevice,
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


class SideBySide(ABC):
    """Runs in training by their numbers; a subclass chooses which is next, names them and takes their ends.

    Args:
        runner: Trains them; closed at the end.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._training: set[int] = set()
        self._is_stopping = False
        # What threads of runs have to tell: only this thread prints, so that lines stay whole.
        self._told: SimpleQueue[tuple[int, str | Outcome | Exception | None]] = SimpleQueue()

    @abstractmethod
    def _find_next(self) -> int | None:
        """Return a run that can begin now."""

    @abstractmethod
    def _make_request(self, number: int) -> RunRequest:
        """Return what the runner is asked for; called once the devices are held."""

    @abstractmethod
    def _name(self, number: int) -> tuple[str, AnyConfig]:
        """Return a run's name, which its lines begin with, and its settings."""

    @abstractmethod
    def _take_end(self, number: int, end: Outcome | Exception | None) -> None:
        """Note the end of a run; None for one that was interrupted."""

    def _train_all(self, configs: Sequence[AnyConfig], hold_device: HoldDevice) -> None:
        """Train until none is left or a signal came; the devices of the configs are held if the runner is local."""
        with closing(self._runner):
            first = self._find_next()
            needs_device = first is not None and self._runner.is_local
            with (
                _hold_devices(configs if needs_device else (), hold_device),
                InterruptionWatcher(is_quiet=True) as watcher,
                showing_runs() as live,
            ):
                if first is not None:
                    self._begin(first)
                self._follow(watcher, live)

    def _follow(self, watcher: InterruptionWatcher, live: LiveRuns) -> None:
        """Print and begin until no run trains and none is left, or none trains after a stop."""
        while self._training:
            with suppress(Empty):
                number, told = self._told.get(timeout=SECONDS_BETWEEN_LOOKS)
                if isinstance(told, str):
                    name, config = self._name(number)
                    if line := told.removeprefix(f"{config.recipe}  ").removeprefix(f"{name} ").strip():
                        live.say(number, name, line)
                else:
                    self._training.remove(number)
                    live.end(number)
                    self._take_end(number, told)
            if watcher.wants_stop and not self._is_stopping:
                print("stopping each training after its step", flush=True)
                self._stop()
            while not self._is_stopping and len(self._training) < self._runner.at_once:
                following = self._find_next()
                if following is None:
                    break
                self._begin(following)

    def _stop(self) -> None:
        """Let every run end after its step, and begin no other."""
        self._is_stopping = True
        self._runner.interrupt()

    def _begin(self, number: int) -> None:
        request = self._make_request(number)
        self._training.add(number)
        Thread(target=self._train, args=(number, request), name=f"run {number + 1}", daemon=True).start()

    def _train(self, number: int, request: RunRequest) -> None:
        try:
            end: Outcome | Exception | None = self._runner.train(request, lambda line: self._told.put((number, line)))
        except Exception as error:  # noqa: BLE001 - one that fails does not stop the others
            end = error
        self._told.put((number, end))


class _Study(SideBySide):
    """Runs of a study by their place in it: waiting, in training, done."""

    def __init__(
        self, configs: Sequence[AnyConfig], runner: Runner, open_parent: Callable[[AnyConfig], str | None] | None
    ) -> None:
        super().__init__(runner)
        self._configs, self._open_parent = configs, open_parent
        self._waiting = list(range(len(configs)))
        self._outcomes: dict[int, Outcome] = {}
        self._checksums: dict[int, str] = {}
        names = {name for config in configs for name in (config.recipe, name_start(config)) if name}
        self._own_recipes = read_own_files(*names) if load_settings().storage else {}

    def train(self, hold_device: HoldDevice) -> list[Outcome]:
        count = len(self._configs)
        print(f"up to {self._runner.at_once} runs at once, {self._runner.describe()}", flush=True)
        try:
            self._train_all(self._configs, hold_device)
        except KeyboardInterrupt:
            print_interrupted(f"with {count - len(self._outcomes)} of {count} runs to go", self._outcomes.values())
            raise
        return [self._outcomes[number] for number in range(count)]

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
                self._checksums[number] = outcome.dataset.checksum
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

    def _make_request(self, number: int) -> RunRequest:
        config = self._configs[number]
        parent = None if self._open_parent is None else self._open_parent(config)
        return RunRequest(
            config=config,
            is_offline=self._open_parent is None,
            parent_run_id=parent,
            own_recipes=self._own_recipes,
            data_checksum=self._checksums[number],
        )

    def _name(self, number: int) -> tuple[str, AnyConfig]:
        config = self._configs[number]
        return f"{config.recipe} seed {config.seed}", config

    def _take_end(self, number: int, end: Outcome | Exception | None) -> None:
        if isinstance(end, LostRunError):
            end = LostRunError(f"{end}; the same command resumes it")
        if end is not None:
            self._outcomes[number] = fail(self._configs[number], end) if isinstance(end, Exception) else end


@contextmanager
def _hold_devices(configs: Sequence[AnyConfig], hold_device: HoldDevice) -> Iterator[None]:
    with ExitStack() as held:
        # In one order, so that two studies never wait for each other.
        for device in sorted({name_device(config.device) for config in configs}):
            held.enter_context(hold_device(load_settings().locks_dir, device))
        yield
