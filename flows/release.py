"""The release flow: best run of a recipe -> certified bundle -> registered version -> judged -> champion."""

import re
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np
from mlflow import MlflowClient
from prefect import flow, task

from flows.export import Exported, export_task
from flows.summaries import ReleaseSummary
from model_code.data.cache import open_dataset
from model_code.disk import hold_lock
from model_code.errors import DataError, ReleaseError, TrainingError, UsageError
from model_code.evaluation.figures import draw_reliability
from model_code.recipes.catalog import RECIPES
from model_code.registry.card import summarise, write_card
from model_code.registry.gate import GateRules, Verdict, judge
from model_code.registry.ledger import complete, find_champion, find_rollback_of, move_champion
from model_code.registry.versions import (
    check_release_name,
    fetch_bundle,
    get_version,
    register_version,
    write_verdict,
)
from model_code.settings import Settings, load_settings
from model_code.tracking.finished_runs import FinishedRun, find_finished_runs, get_finished_run
from model_code.tracking.store import open_store
from model_code.training.run_folder import open_run_folder
from serving.bundle import Change, name_bundle, read_bundle, write_bundle
from serving.classifier import Classifier
from serving.manifest import Manifest

RUN_ID = re.compile(r"[0-9a-f]{32}")
Mode = Literal["enabled", "dry_run", "forced"]


@dataclass(frozen=True)
class Champion:
    """What a challenger is compared with.

    Attributes:
        version: In the registry.
        manifest: Of its bundle.
        folder: Its bundle.
    """

    version: str
    manifest: Manifest
    folder: Path


@flow(name="release", flow_run_name="release-{name}")
def release_flow(
    source: str, name: str, mode: Mode = "enabled", why: str = "", rules: GateRules | None = None
) -> ReleaseSummary:
    """Release a recipe's best run, or one run, under a name, if it is better than the champion.

    Each step can be repeated: a release that was interrupted is completed by the same command. Of two at once the
    second waits, and is then compared with what the first made champion.

    Args:
        source: Recipe or run id.
        name: Registered name.
        mode: `dry_run` proves and judges everything and changes nothing; `forced` promotes whatever the verdict is.
        why: For the ledger; `forced` needs it.
        rules: Of the gate.

    Raises:
        UsageError: No reason is given for a forced release, or source or name mean nothing.
        ReleaseError: There is nothing to release, or what was exported is not what was trained.
    """
    if mode == "forced" and not why:
        raise UsageError('a forced release needs a reason for the ledger: --why "..."')
    settings = load_settings()
    run = choose_task(source, name)
    folder = open_run_folder(settings.checkpoints_dir, run.run_id)
    with (
        hold_lock(settings.locks_dir / f"release-{name}.lock", f"releasing {name}"),
        tempfile.TemporaryDirectory() as scratch,
    ):
        client = open_store(settings)
        # Held only for moments, so that a rollback does not wait until a release has measured.
        champion_lock = settings.locks_dir / f"champion-{name}.lock"
        with hold_lock(champion_lock, f"reading the champion of {name}"):
            changes = complete(client, settings.bundles_dir, name)
        champion = _open_champion(client, settings, name, changes, mode)
        exported = export_task(run, name, folder, Path(scratch))
        summary = ReleaseSummary(
            mode=mode,
            profile=run.profile,
            manifest=exported.manifest,
            champion_before=None if champion is None else champion.version,
        )
        if champion is not None and champion.folder.name == name_bundle(exported.manifest):
            return summary.model_copy(update={"version": champion.version, "is_champion": True})
        verdict = judge_task(exported, champion, rules or GateRules())
        summary = summary.model_copy(update={"verdict": verdict, "is_champion": verdict.is_promoted})
        if mode == "dry_run":
            return summary
        bundle = write_bundle(settings.bundles_dir, Path(scratch), exported.manifest)
        version = register_task(bundle, verdict, run.profile)
        summary = summary.model_copy(update={"version": version, "undone": find_rollback_of(changes, version)})
        if mode != "forced" and (not verdict.is_promoted or summary.undone is not None):
            return summary.model_copy(update={"is_champion": False})
        with hold_lock(champion_lock, f"promoting version {version} of {name}"):
            now = complete(client, settings.bundles_dir, name)
            if now != changes and mode != "forced":
                raise ReleaseError(_describe_race(name, version, now[-1]))
            move_champion(
                client,
                settings.bundles_dir,
                name,
                action="promote",
                before=now[-1].to_version if now else None,
                version=version,
                bundle=bundle.name,
                why=why or f"darkroom release {source}",
                verdict=verdict.summary,
            )
    return summary.model_copy(update={"is_champion": True})


@task(name="choose run")
def choose_task(source: str, name: str) -> FinishedRun:
    """Return the run that `source`, a recipe or a run id, means for a released name."""
    pattern = check_release_name(name)
    settings = load_settings()
    client = open_store(settings)
    if source in RECIPES:
        _check_is_classifier(source, RECIPES[source].build().kind)
        runs = find_finished_runs(client, source, pattern)
        usable = [run for run in runs if _is_usable(settings, run)]
        if usable:
            return usable[0]
        elsewhere = sorted({run.dataset for run in find_finished_runs(client, source, "*")})
        if runs:
            why = f"none of its {len(runs)} finished runs has its checkpoint and its pictures here"
        elif elsewhere:
            why = f"its finished runs are on {', '.join(elsewhere)} and not on {pattern} pictures"
        else:
            why = "it has no finished run"
        raise ReleaseError(f"{source} cannot be released as {name}: {why}; train it first: darkroom train {source}")
    if not RUN_ID.fullmatch(source):
        raise UsageError(f"{source!r} is neither a recipe (`darkroom recipes`) nor a run id (32 hexadecimal digits)")
    run = get_finished_run(client, source)
    _check_is_classifier(f"run {source} of {run.recipe}", run.kind)
    if not fnmatchcase(run.dataset, pattern):
        raise ReleaseError(f"run {source} was trained on {run.dataset}; --as {name} takes runs on {pattern} pictures")
    return run


def _is_usable(settings: Settings, run: FinishedRun) -> bool:
    """Whether a run's checkpoint and the pictures that it was trained on are on this machine."""
    try:
        folder = open_run_folder(settings.checkpoints_dir, run.run_id)
        dataset = open_dataset(run.dataset, settings.cache_dir)
    except (TrainingError, DataError):
        return False
    return folder.result is not None and dataset.checksum == folder.record.data_checksum


@task(name="compare with the champion")
def judge_task(exported: Exported, champion: Champion | None, rules: GateRules) -> Verdict:
    """Let the champion label the challenger's pictures, and judge."""
    manifest = exported.manifest
    champion_N = None
    if champion is not None:
        if set(champion.manifest.classes) != set(manifest.classes):
            raise ReleaseError(
                f"version {champion.version} of {manifest.name} answers {len(champion.manifest.classes)} classes, run "
                f"{manifest.run_id} {len(manifest.classes)}, not the same ones: they cannot be compared; "
                "--mode forced --why REASON releases without"
            )
        if champion.manifest.image_size != manifest.image_size:
            raise ReleaseError(
                f"version {champion.version} of {manifest.name} reads pictures of {champion.manifest.image_size} "
                f"pixels, run {manifest.run_id} of {manifest.image_size}: they cannot be compared; "
                "--mode forced --why REASON releases without"
            )
        classifier = Classifier(champion.folder, champion.version, precision="fp32")
        own_N = np.concatenate(
            [
                classifier.classify(images_NHWC).argmax(axis=1)
                for images_NHWC in np.array_split(exported.images_NHWC, max(1, len(exported.images_NHWC) // 64))
            ]
        )
        champion_N = np.array([manifest.classes.index(label) for label in champion.manifest.classes])[own_N]
    latency_ms, size_bytes = _measure_fastest(manifest)
    return judge(
        labels_N=exported.labels_N,
        challenger_N=exported.predicted_N,
        champion_N=champion_N,
        classes=manifest.classes,
        split=exported.split,
        champion_version=None if champion is None else champion.version,
        rules=rules,
        latency_ms=latency_ms,
        champion_latency_ms=None if champion is None else _measure_fastest(champion.manifest)[0],
        size_bytes=size_bytes,
    )


@task(name="register", retries=2, retry_delay_seconds=2)
def register_task(bundle: Path, verdict: Verdict, profile: str) -> str:
    """Enter a bundle into the registry, with its verdict and its card; return its version."""
    client = open_store(load_settings())
    manifest = read_bundle(bundle)
    version = register_version(client, bundle, manifest)
    write_verdict(client, manifest.name, version, verdict, summarise(manifest, verdict, profile))
    folder = f"release/{manifest.name}-version-{version}"
    client.log_text(manifest.run_id, write_card(manifest, verdict, version, profile), f"{folder}/card.md")
    for reliability in manifest.calibration.reliability if manifest.calibration else ():
        client.log_figure(manifest.run_id, draw_reliability(reliability), f"{folder}/{reliability.split}.png")
    return version


def _open_champion(
    client: MlflowClient, settings: Settings, name: str, changes: tuple[Change, ...], mode: Mode
) -> Champion | None:
    """Return the champion; a forced release goes on without one that cannot be read."""
    try:
        number = find_champion(client, name, changes)
        if number is None:
            return None
        folder = fetch_bundle(client, settings.bundles_dir, get_version(client, name, number))
    except ReleaseError:
        if mode == "forced":
            return None
        raise
    return Champion(number, read_bundle(folder), folder)


def _describe_race(name: str, version: str, last: Change) -> str:
    return (
        f"version {last.to_version} became champion of {name} ({last.action} by {last.by} at {last.at}) while version "
        f"{version} was measured against the one before; nothing was promoted: repeat the command"
    )


def _measure_fastest(manifest: Manifest) -> tuple[float | None, int | None]:
    """Return the lowest median of one picture over the offered variants, ms, and the size of that variant's file."""
    timed = [
        (batch.median_ms, variant.size_bytes)
        for variant in manifest.offered
        for timing in variant.timings
        if variant.is_offered(timing.provider)
        for batch in timing.batches
        if batch.batch_size == 1
    ]
    return min(timed, default=(None, None))


def _check_is_classifier(what: str, kind: str) -> None:
    if kind == "simsiam":
        raise ReleaseError(f"{what} leaves a backbone, not a classifier; release a recipe that fine-tunes it")
    if kind != "supervised":
        raise ReleaseError(f"{what} leaves figures, not a classifier; release a supervised recipe: `darkroom recipes`")
