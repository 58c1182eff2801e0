"""Runs of other machines -> MLflow and `checkpoints/`, as if they had been trained here."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import starmap
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Param, RunTag

from flows.experiments.answers import Answers, check_answers, open_images
from flows.operations.run_packing import START_TAG
from model_code.disk import flush_folder, hold_lock, write_atomically, writing_to
from model_code.errors import ChecksumError, DarkroomError, DataError, TrainingError
from model_code.recipes.catalog import change_dataset, describe_budget
from model_code.settings import Settings, load_settings
from model_code.tracking.journal import ARTIFACTS_FOLDER, Entry, is_finished, read_journal
from model_code.tracking.metric_queue import MetricQueue
from model_code.tracking.mlflow_log import PATIENCE, MlflowLog, create_run, find_attempts, log_images
from model_code.tracking.outage import naming_errors
from model_code.tracking.pack import ANSWERS_FILE, Pack, find_packs, unpack
from model_code.tracking.provenance import hash_code, hash_sources
from model_code.tracking.run_tracker import TENSORBOARD_FOLDER
from model_code.tracking.store import EXPERIMENT, open_store
from model_code.training.run_folder import (
    JOURNAL_FILE,
    RESULT_FILE,
    RUN_FILE,
    RunFolder,
    RunResult,
    open_run_folder,
)
from serving.bundle.store import hash_file

INCOMING_FOLDER = ".incoming"  # in `checkpoints/`, where no run is looked for


def sync_runs(paths: Sequence[Path]) -> None:
    """Take up packed runs and print a line for each; a run that is here already stays as it is.

    A run is verified in a folder beside the others, sent to MLflow with its own times, and last renamed into place: a
    sync that was interrupted at any moment is completed by the same command.

    Raises:
        UsageError: The paths hold no pack.
        DataError: Some runs were refused; the others are here.
    """
    settings = load_settings()
    packs, problems, parts = find_packs(paths)
    client = open_store(settings)
    for pack in _order_by_start(packs):
        try:
            with hold_lock(settings.locks_dir / f"sync-{pack.run_id}.lock", f"syncing run {pack.run_id}"):
                print(_sync(client, settings, pack, parts), flush=True)
        except DarkroomError as error:
            problems.append(str(error))
    for problem in problems:
        print(problem, flush=True)
    if problems:
        count = "1 run was" if len(problems) == 1 else f"{len(problems)} runs were"
        raise DataError(f"{count} not synced; the lines above say why")


def _order_by_start(packs: Sequence[Pack]) -> list[Pack]:
    """Return packs so that what others start from comes before them."""
    by_id, ordered = {pack.run_id: pack for pack in packs}, list[Pack]()

    def enter(pack: Pack) -> None:
        if by_id.pop(pack.run_id, None) is not None:
            if (start := by_id.get(pack.starts_from or "")) is not None:
                enter(start)
            ordered.append(pack)

    for pack in packs:
        enter(pack)
    return ordered


def _sync(client: MlflowClient, settings: Settings, pack: Pack, parts: Mapping[str, Sequence[Path]]) -> str:
    """Take up one run and return what is to be said about it."""
    if (here := _find_here(client, settings, pack.run_id)) is not None:
        known = f"run {pack.run_id} is here already as run {here}"
        with suppress(TrainingError):  # its record is damaged, which is nothing to the pack
            folder = open_run_folder(settings.checkpoints_dir, here)
            weights = folder.result.best_weights if folder.result is not None else None
            if weights in {file.name for file in pack.files} and not (folder.path / weights).exists():
                known += f", without weights; to add those of the pack: darkroom runs remove {here[:8]}, then repeat "
                known += "the command"
        return known
    incoming = settings.checkpoints_dir / INCOMING_FOLDER
    path = incoming / pack.run_id
    with writing_to(path, 0, f"syncing run {pack.run_id}"):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    try:
        unpack(pack, parts, path)
        folder, entries = open_run_folder(incoming, pack.run_id), read_journal(path)
        result = _verify(pack, folder, entries)
        answered = _ask_again(folder, result, settings)
        run_id = _send(client, settings, pack, folder, entries)
        known = _adopt(settings, folder, result, run_id, pack.sources_sha256, entries[0].time_ms / 1000)
    finally:
        shutil.rmtree(path, ignore_errors=True)
    config = folder.record.config
    return f"{config.recipe}  seed {config.seed}  run {pack.run_id} is now run {run_id}\n  {answered}\n  {known}"


def _find_here(client: MlflowClient, settings: Settings, offline_id: str) -> str | None:
    """Return the MLflow run that an offline run was taken up as; None if it was not, or not to the end."""
    found = find_attempts(client, EXPERIMENT, offline_id)
    return next((run_id for run_id in found if (settings.checkpoints_dir / run_id / RESULT_FILE).exists()), None)


def _verify(pack: Pack, folder: RunFolder, entries: Sequence[Entry]) -> RunResult:
    """Return the result of an unpacked run; manifest, config, journal, result and weights must belong together.

    Raises:
        ChecksumError: They do not, or the recipe is another one here.
    """
    record, result = folder.record, folder.result
    tags = {key: value for entry in entries for key, value in entry.tags.items()}
    refused = f"run {pack.run_id} is refused: "
    if result is None or not is_finished(entries):
        raise ChecksumError(f"{refused}it is not complete; repeat its train command where it was begun, and pack it")
    ids = {"run": (record.run_id, result.run_id), "config_sha256": (record.config.sha256(), tags.get("config_sha256"))}
    ids["data_checksum"] = (record.data_checksum, tags.get("data_checksum"))
    wanted = {"run": pack.run_id, "config_sha256": pack.config_sha256, "data_checksum": pack.data_checksum}
    for name, found in ids.items():
        if set(found) != {wanted[name]}:
            raise ChecksumError(f"{refused}{name} is {found[0]} and {found[1]}, not {wanted[name]}; pack the run again")
    # Its profile is what the recipe here would call it; the tag that it began with, before memory divided it perhaps.
    budget = describe_budget(change_dataset(record.config, record.config.dataset))
    begun = next((entry.tags["budget"] for entry in entries if "budget" in entry.tags), None)
    if budget != begun:
        raise ChecksumError(
            f"{refused}it was trained as {begun!r} of {record.config.recipe}, which is {budget!r} of the "
            "recipe here; use the same code on both machines"
        )
    weights = folder.path / str(result.best_weights)
    if pack.weights != "none" and result.best_weights is not None and hash_file(weights) != result.weights_sha256:
        raise ChecksumError(f"{refused}{result.best_weights} is not the file that was trained; pack the run again")
    return result


def _ask_again(folder: RunFolder, result: RunResult, settings: Settings) -> str:
    """Compare the weights' answers for some images with those packed, and return a line about it."""
    if result.best_weights is None:
        return "it left no weights"
    if not (folder.path / result.best_weights).exists():
        return "without weights: it can be reported, not released"
    file = folder.path / ANSWERS_FILE
    if not file.exists():
        return "its weights were not checked: their answers were not packed"
    answers = Answers.model_validate_json(file.read_bytes())
    dataset = open_images(folder.record, settings.cache_dir)
    if dataset is None:
        return f"its weights were not checked: the {folder.record.config.dataset} images of the run are not here"
    check_answers(folder, dataset, answers)
    return f"its weights answer {len(answers.indices)} {answers.split} images as where they were packed"


def _send(client: MlflowClient, settings: Settings, pack: Pack, folder: RunFolder, entries: Sequence[Entry]) -> str:
    """Write a run into MLflow with its own times, and return its id there; what was sent before counts once."""
    record, start_ms, end_ms = folder.record, entries[0].time_ms, entries[-1].time_ms
    tags = {key: value for entry in entries for key, value in entry.tags.items()}
    if start := tags.get(START_TAG):
        tags[START_TAG] = _find_here(client, settings, start) or start
    params = {key: value for entry in entries for key, value in entry.params.items()}
    with naming_errors(pack.run_id):
        run_id = create_run(client, EXPERIMENT, record.config, pack.run_id, settings.checkpoints_dir, start_ms)
        client.log_batch(run_id, params=list(starmap(Param, params.items())), tags=list(starmap(RunTag, tags.items())))
        record = record.model_copy(update={"run_id": run_id})
        log_images(client, record)
    queue = MetricQueue(client, run_id, record.config.recipe, PATIENCE)
    log = MlflowLog(record, client, queue, set(), {}, PATIENCE)
    try:
        with log.open_events(folder.path) as events:
            for entry in entries:
                if entry.step is not None:
                    queue.put(entry.metrics, entry.step, entry.time_ms)
                    if entry.step > 0:
                        events.write(entry.metrics, entry.step, entry.time_ms / 1000)
        [written] = (folder.path / TENSORBOARD_FOLDER).iterdir()
        # The same name at each try.
        named = written.rename(written.with_name(f"events.out.tfevents.{start_ms // 1000}.{pack.run_id}"))
        log.log_file(named, f"{TENSORBOARD_FOLDER}/{named.name}")
        packed = {file.name for file in pack.files}  # weights may have been left out
        artifacts = {entry.artifact: entry.file for entry in entries if entry.artifact and entry.file in packed}
        for place, name in artifacts.items():
            log.log_file(folder.path / str(name), place)
        log.finish(end_ms)
    finally:
        queue.close()
    return run_id


def _adopt(
    settings: Settings, folder: RunFolder, result: RunResult, run_id: str, sources_sha256: str | None, start_s: float
) -> str:
    """Rename a verified run into place under its id in MLflow; return whether train-all keeps it."""
    is_same_code = sources_sha256 == hash_sources()
    code_sha256 = hash_code() if is_same_code else result.code_sha256
    result = result.model_copy(update={"run_id": run_id, "code_sha256": code_sha256})
    record = folder.record.model_copy(update={"run_id": run_id})
    write_atomically(folder.path / RUN_FILE, record.model_dump_json(indent=2).encode())
    os.utime(folder.path / RUN_FILE, (start_s, start_s))  # listings read the start time from it
    write_atomically(folder.path / RESULT_FILE, result.model_dump_json(indent=2).encode())
    for name in (JOURNAL_FILE, ANSWERS_FILE):
        (folder.path / name).unlink(missing_ok=True)
    shutil.rmtree(folder.path / ARTIFACTS_FOLDER, ignore_errors=True)
    folder.path.rename(settings.checkpoints_dir / run_id)
    flush_folder(settings.checkpoints_dir)
    if is_same_code:
        return "train-all keeps it"
    return "it was trained by other code than is here: report and release know it, train-all will train it again"
