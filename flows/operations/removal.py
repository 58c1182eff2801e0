"""Removal of versions, runs, weights and data sets: never of what a version, an interrupted run or the report needs."""

import re
import shutil
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flows.operations.history import find_version
from model_code.disk import REMOVED_PREFIX, format_size, hold_lock, writing_to
from model_code.errors import DataError, ReleaseError, TrainingError, UsageError
from model_code.release.changes import find_previous, read_settled
from model_code.release.registered import RegisteredVersion, read_registered
from model_code.settings import Settings
from model_code.training.exchange import remove_run
from model_code.training.run_folder import (
    RunFolder,
    RunResult,
    find_run_place,
    list_finished,
    list_interrupted,
    open_run_folder,
    resolve_run_id,
)
from serving.bundle.manifest import FILE_NAME
from serving.bundle.store import BUNDLE_TAG, Change

WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class Weights:
    """Weights of a run that can go; its figures stay.

    Attributes:
        run: The run.
        files: Files here and MLflow's copies in the home.
        size_bytes: Their size.
    """

    run: RunFolder
    files: tuple[Path, ...]
    size_bytes: int


@dataclass(frozen=True)
class DatasetRemoval:
    """What the removal of a packed data set takes.

    Attributes:
        size_bytes: Size of the packed images.
        revisions: First digits of the checksum of each kept revision.
        history_bytes: Size of their tables of images and labels.
        users: Runs, versions and data sets that need it.
    """

    size_bytes: int
    revisions: tuple[str, ...]
    history_bytes: int
    users: tuple[str, ...]

    def __str__(self) -> str:
        count = f"{len(self.revisions)} revision{'' if len(self.revisions) == 1 else 's'}"
        return f"packed images {format_size(self.size_bytes)}, history of {count} {format_size(self.history_bytes)}"


def list_registered(settings: Settings, name: str | None = None) -> tuple[RegisteredVersion, ...]:
    """Return the versions of one name or of all, oldest first, from the home or from MLflow's client."""
    registered = read_registered(settings, name)
    if registered is not None:
        return registered
    from model_code.release.versions import list_all_versions
    from model_code.tracking.store import open_store

    return list_all_versions(open_store(settings), name)


def retire(settings: Settings, name: str, number: str, *, is_dry_run: bool = False) -> int:
    """Remove a version from the registry, and its bundle; return the bytes that are free now.

    The ledger keeps its lines, the run keeps its figures and cards. A dry run refuses alike, and removes nothing.

    Raises:
        ReleaseError: There is no such version, it is champion or challenger, or a rollback goes back to it.
    """
    from model_code.release.ledger import complete
    from model_code.release.versions import delete_version, find_model_folder
    from model_code.tracking.store import open_store

    client = open_store(settings)
    with hold_lock(settings.locks_dir / f"champion-{name}.lock", f"retiring version {number} of {name}"):
        changes = complete(client, settings.bundles_dir, name)  # first: it may move the alias
        versions = list_registered(settings, name)
        version = _get_retirable(settings, name, number, versions, changes)
        bundle = version.tags.get(BUNDLE_TAG, "")
        is_shared = any(one.tags.get(BUNDLE_TAG) == bundle for one in versions if one != version)
        has_own = re.fullmatch(FILE_NAME, bundle) is not None and not is_shared
        places = [settings.bundles_dir / name / bundle] if has_own else []
        stored = find_model_folder(client, name, number)
        if stored is not None and stored.is_relative_to(settings.artifacts_dir):
            places.append(stored)
        if is_dry_run:
            return sum(map(measure, places))
        delete_version(client, name, number)
        return sum(map(_remove, places))


def check_retirable(settings: Settings, name: str, number: str) -> None:
    """Refuse a version that cannot be retired, where the home proves it; no MLflow is needed.

    Raises:
        ReleaseError: There is no such version, it is champion or challenger, or a rollback goes back to it.
    """
    versions, changes = read_registered(settings, name), read_settled(settings, name)
    if versions is not None:
        _get_retirable(settings, name, number, versions, changes or ())


def _get_retirable(
    settings: Settings, name: str, number: str, versions: tuple[RegisteredVersion, ...], changes: tuple[Change, ...]
) -> RegisteredVersion:
    """Return a version that neither an alias nor a rollback needs."""
    version = find_version(settings, name, number, versions)
    aliases = version.aliases
    if "champion" in aliases:
        raise ReleaseError(f"version {number} of {name} is champion; release another one first, or roll back")
    if aliases:
        way = f"darkroom challenge {name} --none" if aliases == ("challenger",) else "remove the alias in MLflow"
        raise ReleaseError(f"version {number} of {name} is {' and '.join(aliases)}; end that first: {way}")
    if find_previous(changes) == number:
        raise ReleaseError(f"version {number} of {name} is what `darkroom rollback {name}` goes back to; it stays")
    return version


def remove_runs(settings: Settings, given: Sequence[str], *, is_dry_run: bool = False) -> Iterator[tuple[str, int]]:
    """Yield the id of each run, and the bytes that are free once it is removed; none is removed if one must stay.

    A dry run refuses alike, and removes nothing. See `_remove_run`.
    """
    run_ids = list(dict.fromkeys(resolve_run_id(settings.checkpoints_dir, one) for one in given))
    for run_id in run_ids:
        _remove_run(settings, run_id, run_ids, is_dry_run=True)
    for run_id in run_ids:
        yield run_id, _remove_run(settings, run_id, run_ids, is_dry_run=is_dry_run)


def _remove_run(settings: Settings, run_id: str, leaving: Collection[str], *, is_dry_run: bool) -> int:
    """Remove a run, also one whose record is damaged: its folder, and its MLflow run with its files; return their size.

    Raises:
        ReleaseError: A version was released from it.
        TrainingError: There is no such run, or an interrupted run starts from its weights.
        BusyError: It is being trained or released.
    """
    folder = find_run_place(settings.checkpoints_dir, run_id)
    with folder.lock():
        if reason := explain_need(settings, list_registered(settings), leaving).get(run_id):
            raise ReleaseError(
                f"run {run_id} is needed by {reason}; `darkroom models` shows versions, `darkroom retire` ends one"
            )
        places = (settings.artifacts_dir / run_id, folder.path)
        if is_dry_run:
            return sum(map(measure, places))
        if not folder.is_offline:
            from model_code.tracking.finished_runs import has_run
            from model_code.tracking.store import open_store

            client = open_store(settings)
            if has_run(client, run_id):
                client.delete_run(run_id)
        with suppress(TrainingError):  # a record that cannot be read names no place in the storage
            remove_run(open_run_folder(settings.checkpoints_dir, run_id).record, is_offline=folder.is_offline)
        return sum(map(_remove, places))


def explain_need(
    settings: Settings, versions: tuple[RegisteredVersion, ...], leaving: Collection[str] = ()
) -> dict[str, str]:
    """Return what needs the weights of each run: versions, and interrupted runs that start from them.

    Args:
        settings: Places of the home.
        versions: Registered versions.
        leaving: Ids of runs that are removed as well, and so need nothing.
    """
    needed: dict[str, list[str]] = defaultdict(list)
    for version in versions:
        needed[version.run_id].append(f"version {version.version} of {version.name}")
    left = (one for one in list_interrupted(settings.checkpoints_dir) if one.path.name not in leaving)
    starts = {one.record.pretrained_sha256: one for one in left}
    for folder in list_finished(settings.checkpoints_dir):
        result = _read_result(folder)
        if result is not None and result.weights_sha256 in starts and result.weights_sha256 is not None:
            needed[folder.path.name].append(_name_left(starts[result.weights_sha256]))
    return {run_id: ", ".join(reasons) for run_id, reasons in needed.items()}


def find_prunable(settings: Settings, kept_count: int) -> list[Weights]:
    """Return the weights that can go: of finished runs not among the best that nothing needs or uses now.

    Args:
        settings: Places of the home.
        kept_count: Best runs that keep their weights, by validation, of each recipe, revision of a data set and budget.
    """
    # In this order: a release registers its version before it lets go of its run.
    used = {one.path.name for one in list_finished(settings.checkpoints_dir) if is_in_use(one)}
    needed = explain_need(settings, list_registered(settings)).keys() | used
    groups: dict[tuple[str, ...], list[RunFolder]] = defaultdict(list)
    for folder in list_finished(settings.checkpoints_dir):
        config, result = folder.record.config, _read_result(folder)
        if result is not None and not folder.is_offline:  # those of offline runs are nowhere else
            # What memory divided is custom in its result only. Custom runs differ in settings, seeds are compared.
            budget = result.profile if result.profile != "custom" else config.model_copy(update={"seed": 0}).sha256()
            groups[config.recipe, config.dataset, folder.record.data_checksum, budget].append(folder)
    prunable = []
    for folders in groups.values():
        ranked = sorted(folders, key=_get_validation, reverse=True)
        for folder in ranked[kept_count:]:
            copies = settings.artifacts_dir / folder.path.name / "artifacts" / "checkpoints"
            files = tuple(sorted([*folder.path.glob(WEIGHTS), *copies.glob(WEIGHTS)]))
            if files and folder.path.name not in needed:
                prunable.append(Weights(folder, files, sum(map(_measure_file, files))))
    return prunable


def prune(weights: Weights) -> None:
    """Remove weights; the run's record, result and figures stay."""
    with weights.run.lock():
        for file in weights.files:
            file.unlink(missing_ok=True)


def plan_dataset_removal(settings: Settings, name: str) -> DatasetRemoval:
    """Return what the removal of a packed data set takes. Downloads and sources stay.

    Raises:
        DataError: It is not there.
    """
    from model_code.data.cache import FEEDBACK_SUFFIX, check_dataset_name, is_added
    from model_code.data.revisions import SHORT_CHECKSUM, find_revisions

    check_dataset_name(name)
    if not (settings.cache_dir / name).is_dir():  # what an interrupted packing left has no manifest
        raise DataError(f"data set {name!r} is not in {settings.cache_dir}; `darkroom data list` shows those that are")
    revisions = find_revisions(name, settings.cache_dir)
    left = [one for one in list_interrupted(settings.checkpoints_dir) if one.record.config.dataset == name]
    finished = {
        one.path.name: one.record.data_checksum[:SHORT_CHECKSUM]
        for one in list_finished(settings.checkpoints_dir)
        if one.record.config.dataset == name and one.record.data_checksum[:SHORT_CHECKSUM] in revisions
    }
    users = [_name_left(one) for one in left]
    users += [
        f"version {one.version} of {one.name} (revision {finished[one.run_id]})"
        for one in list_registered(settings)
        if one.run_id in finished
    ]
    users += [f"run {run_id[:8]} (revision {checksum})" for run_id, checksum in finished.items()]
    users += [f"{name}{FEEDBACK_SUFFIX}"] if is_added(f"{name}{FEEDBACK_SUFFIX}", settings.cache_dir) else []
    history = sum(file.stat().st_size for file in revisions.values())
    return DatasetRemoval(measure(settings.cache_dir / name) - history, tuple(revisions), history, tuple(users))


def remove_dataset(settings: Settings, name: str, *, is_forced: bool = False) -> DatasetRemoval:
    """Remove a packed data set with its revisions; return what went. Downloads and sources stay.

    Raises:
        DataError: It is not there, or a run, a version or another data set needs it.
    """
    from model_code.data.sources.images import name_some

    plan = plan_dataset_removal(settings, name)
    if plan.users and not is_forced:
        raise DataError(f"data set {name} ({plan}) is needed by {name_some(plan.users)}; --force removes it anyway")
    with hold_lock(settings.cache_dir / ".locks" / f"{name}.lock", f"removing {name}"):
        _remove(settings.cache_dir / name)
    return plan


def parse_kept(text: str) -> int:
    """Return N of `best:N`.

    Raises:
        UsageError: It is nothing of the kind.
    """
    word, _, number = text.partition(":")
    if word != "best" or not number.isdecimal() or int(number) < 1:
        raise UsageError(f"--keep {text}: give best:N with N of 1 or more, such as best:3")
    return int(number)


def measure(folder: Path) -> int:
    """Return the size of the files below a folder, bytes; 0 without one."""
    try:
        return sum(_measure_file(file) for file in folder.rglob("*") if not file.is_dir())
    except FileNotFoundError:  # a folder is removed at this moment
        return 0


def _measure_file(file: Path) -> int:
    try:
        return file.lstat().st_size
    except FileNotFoundError:  # replaced by a training, or removed, at this moment
        return 0


def _name_left(folder: RunFolder) -> str:
    return f"{folder.state} run {folder.path.name[:8]}"


def is_in_use(folder: RunFolder) -> bool:
    """Whether a process works in the folder; False where that cannot be looked at."""
    try:
        return folder.is_busy
    except OSError:
        return False


def sweep_removed(settings: Settings) -> None:
    """Remove what removals that were killed left behind."""
    places = (settings.checkpoints_dir, settings.artifacts_dir, settings.cache_dir, *settings.bundles_dir.glob("*"))
    for folder in places:
        _sweep(folder)


def _remove(folder: Path) -> int:
    """Remove a folder, which is there as a whole or, once it has another name, not at all."""
    size_bytes = measure(folder)
    with writing_to(folder.parent, 0, f"removing {folder.name}"):
        if folder.exists():
            folder.rename(folder.with_name(f"{REMOVED_PREFIX}{uuid.uuid4().hex}"))
    _sweep(folder.parent)
    return size_bytes


def _sweep(folder: Path) -> None:
    with writing_to(folder, 0, "removing what is left of a removal"):
        for removed in folder.glob(f"{REMOVED_PREFIX}*"):
            with suppress(FileNotFoundError):  # another process removes it at this moment
                shutil.rmtree(removed)


def _read_result(folder: RunFolder) -> RunResult | None:
    try:
        return folder.result
    except TrainingError:
        return None


def _get_validation(folder: RunFolder) -> float:
    result = _read_result(folder)
    return -1.0 if result is None else result.metrics.get("validation/best_accuracy", -1.0)
