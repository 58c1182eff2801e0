"""Packing of offline runs; needs no MLflow and no Prefect."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.experiments.answers import ask_weights, open_images
from model_code.disk import format_size
from model_code.errors import DataError, TrackingError, UsageError
from model_code.settings import Settings, load_settings
from model_code.tracking.journal import ARTIFACTS_FOLDER, is_finished, read_journal
from model_code.tracking.pack import ANSWERS_FILE, Pack, Weights, write_pack
from model_code.tracking.provenance import hash_code, hash_sources
from model_code.training.run_folder import (
    JOURNAL_FILE,
    RESULT_FILE,
    RUN_FILE,
    RunFolder,
    open_run_folder,
    resolve_run_id,
)
from serving.bundle.store import hash_file

START_TAG = "pretrained_run_id"


def pack_runs(names: Sequence[str], weights: Weights, out: Path, part_bytes: int) -> None:
    """Pack complete offline runs, and print a line for each.

    Args:
        names: Run ids, or at least their first 8 digits.
        weights: `best`; `all`: the last epoch's too; `none`: neither, for a report without a release.
        out: Folder of the packs.
        part_bytes: Size of a part.

    Raises:
        UsageError: A run does not exist here, or is no offline run.
        TrackingError: It is not complete.
        DataError: Its files are damaged.
    """
    settings = load_settings()
    for folder in [_find_run(settings, name) for name in names]:
        with folder.lock():
            pack, note = _pack(folder, settings, weights, out, part_bytes)
        config, size = folder.record.config, sum(part.size_bytes for part in pack.parts)
        count = f"{len(pack.parts)} part{'s' if len(pack.parts) > 1 else ''}"
        print(
            f"{config.recipe}  seed {config.seed}  run {pack.run_id}: {count}, {format_size(size)}, in {out}{note}",
            flush=True,
        )


def _find_run(settings: Settings, name: str) -> RunFolder:
    folder = open_run_folder(settings.checkpoints_dir, resolve_run_id(settings.checkpoints_dir, name))
    if not folder.is_offline:
        raise UsageError(f"run {name} is in MLflow; only runs of `darkroom train --offline` are packed")
    if folder.result is None:
        raise TrackingError(f"run {name} is not complete; repeat its train command, then pack it")
    return folder


def _pack(folder: RunFolder, settings: Settings, weights: Weights, out: Path, part_bytes: int) -> tuple[Pack, str]:
    """Return the manifest, and what is to be said about it."""
    record, result = folder.record, folder.result
    assert result is not None, "found among the complete ones"
    entries = read_journal(folder.path)
    if not is_finished(entries):
        raise TrackingError(f"run {record.run_id}: {folder.path / JOURNAL_FILE} lacks the run's end; train again")
    artifacts = {entry.artifact: entry.file for entry in entries if entry.artifact and entry.file}
    names = [RUN_FILE, RESULT_FILE, JOURNAL_FILE]
    names += sorted(file for file in artifacts.values() if file.startswith(f"{ARTIFACTS_FOLDER}/"))
    if result.best_weights is not None and weights != "none":
        best = folder.path / result.best_weights
        if not best.is_file():
            raise DataError(f"run {record.run_id}: {best} is missing; pack the run with --weights none, or train again")
        if hash_file(best) != result.weights_sha256:
            raise DataError(f"{best} is not the file that was trained; train again")
        kept = {file for file in artifacts.values() if not file.startswith(f"{ARTIFACTS_FOLDER}/")}
        names += sorted(kept) if weights == "all" else [result.best_weights]
    files = {name: folder.path / name for name in names}
    if missing := [name for name, file in files.items() if not file.is_file()]:
        raise DataError(f"run {record.run_id}: {missing[0]} is missing in {folder.path}; train again")
    pack = Pack(
        run_id=record.run_id,
        config_sha256=record.config.sha256(),
        data_checksum=record.data_checksum,
        sources_sha256=hash_sources() if result.code_sha256 == hash_code() else None,
        starts_from=next(
            (entry.tags["pretrained_run_id"] for entry in entries if "pretrained_run_id" in entry.tags), None
        ),
        weights=weights,
    )
    with TemporaryDirectory() as scratch:
        note = ""
        if result.best_weights in files:
            dataset = open_images(record, settings.cache_dir)
            if dataset is None:
                note = f"; its {record.config.dataset} images are not here any more: its weights cannot be checked"
            else:
                files[ANSWERS_FILE] = Path(scratch) / ANSWERS_FILE
                files[ANSWERS_FILE].write_text(ask_weights(folder, dataset).model_dump_json())
        return write_pack(pack, files, out, part_bytes), note
