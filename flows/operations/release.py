"""A release: best run of a recipe -> certified bundle -> registered version -> judged -> champion."""

import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient

from flows.operations.release_source import check_source
from flows.operations.step import step
from flows.printing.lines import print_line
from flows.printing.summaries import ReleaseSummary
from model_code.data.cache import open_dataset
from model_code.data.progress import show_progress
from model_code.data.revisions import name_revision
from model_code.data.sources.images import name_some
from model_code.disk import hold_lock, writing_to
from model_code.errors import DataError, ReleaseError, TrainingError, UsageError
from model_code.evaluation.figures import draw_reliability
from model_code.release.backbone_classifier import Head
from model_code.release.card import summarise, write_card
from model_code.release.changes import find_rollback_of
from model_code.release.export import Exported, export
from model_code.release.gate import judge
from model_code.release.gate_rules import GateRules
from model_code.release.ledger import check_reason, complete, find_champion, move_champion
from model_code.release.verdict import Verdict
from model_code.release.versions import (
    fetch_bundle,
    find_bundle_version,
    get_champion,
    get_version,
    list_versions,
    name_folder,
    register_version,
    write_verdict,
)
from model_code.settings import Settings, load_settings
from model_code.tracking.finished_runs import FinishedRun, find_finished_runs, get_finished_run
from model_code.tracking.store import open_store
from model_code.training.config import TrainingConfig
from model_code.training.images import count_learned
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.run_folder import is_run_id, open_run_folder
from serving.bundle.manifest import Manifest
from serving.bundle.store import BUNDLE_TAG, Change, name_bundle, read_bundle, write_bundle
from serving.errors import BundleError
from serving.models.classifier import Classifier

BATCH = 64
Mode = Literal["enabled", "dry_run", "forced"]

_log = logging.getLogger(__name__)

export_task = step("export and certify")(export)


@dataclass(frozen=True)
class Champion:
    """What a challenger is compared with.

    Attributes:
        version: In the registry.
        manifest: Manifest of its bundle.
        folder: Its bundle.
    """

    version: str
    manifest: Manifest
    folder: Path


def release(
    source: str,
    name: str,
    mode: Mode = "enabled",
    why: str = "",
    rules: GateRules | None = None,
    head: Head | None = None,
    has_new_classes: bool = False,
) -> ReleaseSummary:
    """Release a recipe's best run, or one run, under a name, if it is better than the champion.

    Each step can be repeated: a release that was interrupted is completed by the same command. A run whose model is
    champion is exported and measured again only by `dry_run` and `forced`. Of two at once the second waits, and is then
    compared with what the first made champion.

    Args:
        source: Recipe or run id.
        name: Registered name.
        mode: `dry_run` proves and judges everything and changes nothing; `forced` promotes whatever the verdict is.
        why: Reason for the ledger.
        rules: Rules of the gate.
        head: Head behind the backbone of a SimSiam run; None takes the one that is better on validation.
        has_new_classes: True to replace a champion of other classes, with which nothing can be compared.

    Raises:
        UsageError: Source or name mean nothing.
        ReleaseError: There is nothing to release, or what was exported is not what was trained.
        BusyError: The run is being trained, packed or removed.
    """
    check_reason(why)
    settings = load_settings()
    run = choose_task(source, name)
    if head is not None and run.kind != "simsiam":
        raise UsageError(f"--head {head} is for SimSiam runs; {run.recipe} has a last layer of its own")
    folder = open_run_folder(settings.checkpoints_dir, run.run_id)
    with (
        folder.lock(is_shared=True),
        hold_lock(settings.locks_dir / f"release-{name}.lock", f"releasing {name}"),
        _making_scratch(settings, name) as scratch,
    ):
        client = open_store(settings)
        with _holding_champion(settings, name):
            changes = complete(client, settings.bundles_dir, name)
            champion = _open_champion(client, settings, name, changes, mode)
        before = None if champion is None else champion.version
        if champion is not None and not _has_same_classes(champion, folder.record.config.dataset, has_new_classes):
            champion = None
        if champion is not None and _is_made_from(champion, run, head) and mode == "enabled":
            return _describe_kept(champion, run, mode)
        with writing_to(Path(scratch), 0, f"exporting run {run.run_id}"):
            exported = export_task(run, name, folder, Path(scratch), head)
        if champion is not None and champion.folder.name == name_bundle(exported.manifest):
            return _describe_kept(champion, run, mode)
        summary = ReleaseSummary(
            mode=mode,
            profile=run.profile,
            manifest=exported.manifest,
            champion_before=before,
        )
        verdict = compare_task(exported, Path(scratch), champion, rules or GateRules(), mode)
        versions = list_versions(client, name)
        undone = find_rollback_of(changes, [str(one.version) for one in versions if one.run_id == run.run_id])
        is_promoted = mode == "forced" or (verdict.is_promoted and undone is None)
        summary = summary.model_copy(update={"verdict": verdict, "undone": undone, "is_champion": is_promoted})
        if mode == "dry_run":
            return summary
        with _holding_champion(settings, name):
            bundle = _keep_bundle(client, settings, name, exported.manifest, Path(scratch))
        was_champion = {change.to_version for change in changes}
        version = register_task(bundle, verdict, run.profile, is_promoted, was_champion)
        if is_promoted:
            with _holding_champion(settings, name):
                _promote(client, settings, name, version, changes, mode, why or f"darkroom release {source}", verdict)
    return summary.model_copy(update={"version": version})


@contextmanager
def _making_scratch(settings: Settings, name: str) -> Iterator[str]:
    """Make a folder for what is exported; what a killed release of the name left behind is removed first."""
    prefix = f".release-{name}-"
    with writing_to(settings.home, 0, f"releasing {name}"):
        settings.home.mkdir(parents=True, exist_ok=True)
        for stale in settings.home.glob(f"{prefix}*"):
            shutil.rmtree(stale)
        scratch = tempfile.mkdtemp(prefix=prefix, dir=settings.home)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_made_from(champion: Champion, run: FinishedRun, head: Head | None) -> bool:
    """Whether the champion is this run's model; behind a backbone the head that is better is found by measuring."""
    return champion.manifest.run_id == run.run_id and head is None and run.kind != "simsiam"


def _describe_kept(champion: Champion, run: FinishedRun, mode: Mode) -> ReleaseSummary:
    return ReleaseSummary(
        mode=mode,
        profile=run.profile,
        manifest=champion.manifest,
        version=champion.version,
        champion_before=champion.version,
        is_champion=True,
    )


def _keep_bundle(client: MlflowClient, settings: Settings, name: str, manifest: Manifest, scratch: Path) -> Path:
    """Return the folder of what is released: as it was registered, if it was, else as it was exported now.

    Two manifests of the same models would be two versions in one folder.
    """
    known = find_bundle_version(client, name, name_bundle(manifest))
    if known is not None:
        try:
            return fetch_bundle(client, settings.bundles_dir, known)
        except ReleaseError as error:
            _log.warning("%s; it is registered anew", error)
    with writing_to(settings.bundles_dir, 0, f"releasing {name}"):
        return write_bundle(settings.bundles_dir, scratch)


@contextmanager
def _holding_champion(settings: Settings, name: str) -> Iterator[None]:
    """Hold what rollbacks need too, for moments only: a rollback does not wait until a release has measured."""
    with hold_lock(settings.locks_dir / f"champion-{name}.lock", f"reading or moving the champion of {name}"):
        yield


def _promote(
    client: MlflowClient,
    settings: Settings,
    name: str,
    version: str,
    changes: tuple[Change, ...],
    mode: Mode,
    why: str,
    verdict: Verdict,
) -> None:
    """Make a version champion, unless another one has become it since `changes` were read."""
    now = complete(client, settings.bundles_dir, name)
    if now != changes and mode != "forced":
        raise ReleaseError(
            f"version {now[-1].to_version} became champion of {name} ({now[-1].action} by {now[-1].by} at "
            f"{now[-1].at}) while version {version} was measured against the one before; nothing was promoted: "
            "repeat the command"
        )
    champion = get_champion(client, name)
    move_champion(
        client,
        settings.bundles_dir,
        name,
        action="promote",
        before=None if champion is None else str(champion.version),
        version=get_version(client, name, version),
        why=why,
        verdict=f"forced; the gate: {verdict.summary}" if mode == "forced" else verdict.summary,
    )


@step("choose run")
def choose_task(source: str, name: str) -> FinishedRun:
    """Return the run that `source`, a recipe or a run id, means for a released name, and print which one it is."""
    settings = load_settings()
    folders = check_source(source, name, settings)
    known = {folder.record.run_id for folder in folders}
    client = open_store(settings)
    if is_run_id(source):
        run = get_finished_run(client, folders[0].record.run_id)
        _print_choice([run], run.run_id)
        return run
    found = find_finished_runs(client, source, "*")
    runs = [run for run in found if run.run_id in known and _is_usable(settings, run)]
    if not runs:
        record = folders[0].record
        raise ReleaseError(
            f"{source} cannot be released as {name}: none of its {len(folders)} finished runs is in MLflow with its "
            f"images here; the newest, {record.run_id[:8]}, needs "
            f"{name_revision(record.config.dataset, record.data_checksum)} (`darkroom data list "
            f"{record.config.dataset}` shows what is packed), or train it again: darkroom train {source}"
        )
    _print_choice(runs, folders[0].record.run_id)
    return runs[0]


def _print_choice(runs: Sequence[FinishedRun], newest_id: str) -> None:
    for line in _describe_choice(runs, newest_id).splitlines():
        print_line(line)


def _describe_choice(runs: Sequence[FinishedRun], newest_id: str) -> str:
    """Return which run of a recipe is released, and why it is not the newest one where it is not."""
    best, newest = runs[0], next((run for run in runs if run.run_id == newest_id), None)
    accuracy = "" if best.validation_accuracy is None else f", validation accuracy {best.validation_accuracy:.4f}"
    line = f"run {best.run_id[:8]} of {best.recipe}: {best.profile} on {best.dataset}{accuracy}"
    if len(runs) > 1:
        line += f"; the best of {len(runs)} by budget, then validation"
    if newest is None:
        return (
            f"{line}\n  the newest run, {newest_id[:8]}, cannot be released: its images or its MLflow run are not here"
        )
    if newest.run_id != best.run_id:
        theirs = "" if newest.validation_accuracy is None else f", validation {newest.validation_accuracy:.4f}"
        line += f"\n  the newest is {newest_id[:8]}: {newest.profile} on {newest.dataset}{theirs}; "
        line += f"to release it: darkroom release {newest_id[:8]} --as ..."
    return line


def _is_usable(settings: Settings, run: FinishedRun) -> bool:
    """Whether a run's checkpoint and the images that it was trained on are on this machine."""
    try:
        folder = open_run_folder(settings.checkpoints_dir, run.run_id)
        dataset = open_dataset(run.dataset, settings.cache_dir)
    except (TrainingError, DataError):
        return False
    result = folder.result
    has_weights = result is not None and (folder.path / str(result.best_weights)).is_file()
    return has_weights and dataset.checksum == folder.record.data_checksum


def compare(exported: Exported, folder: Path, champion: Champion | None, rules: GateRules, mode: Mode) -> Verdict:
    """Let champion and challenger label the same images, each with the variant that it would be served with here.

    A forced release goes on without the comparison where the two cannot be compared.
    """
    challenger = Classifier(folder, "challenger")
    champion_N, champion_ms, champion_precision = None, None, None
    if champion is not None:
        try:
            _check_comparable(champion, exported.manifest)
            served = Classifier(champion.folder, champion.version)
        except (BundleError, ReleaseError) as error:
            if mode != "forced":
                raise ReleaseError(f"{error}; --mode forced --why REASON releases without a comparison") from error
            champion = None
        else:
            to_challenger_K = [exported.manifest.classes.index(label) for label in champion.manifest.classes]
            champion_N = np.array(to_challenger_K)[_label(served, exported.images_NHWC, f"version {champion.version}")]
            champion_ms = _find_latency(served)
            champion_precision = served.variant.precision
    return judge(
        labels_N=exported.labels_N,
        challenger_N=_label(challenger, exported.images_NHWC, "the challenger"),
        champion_N=champion_N,
        classes=exported.manifest.classes,
        split=exported.split,
        champion_version=None if champion is None else champion.version,
        rules=rules,
        latency_ms=_find_latency(challenger),
        champion_latency_ms=champion_ms,
        size_bytes=challenger.variant.size_bytes,
        precision=challenger.variant.precision,
        champion_precision=champion_precision,
        learned_by_champion=0 if champion is None else _count_learned(exported, champion),
    )


def _count_learned(exported: Exported, champion: Champion) -> int:
    """Return how many of the images that a challenger held out its champion has learned from, as far as is known."""
    ours, theirs = exported.manifest, champion.manifest
    if exported.split != "validation" or ours.data_checksum != theirs.data_checksum:
        return 0
    settings = load_settings()
    try:
        config, other = (open_run_folder(settings.checkpoints_dir, one.run_id).record.config for one in (ours, theirs))
    except TrainingError:  # the run of the champion is not here any more
        return 0
    assert isinstance(config, TrainingConfig | SimSiamConfig), "others are not released"
    assert isinstance(other, TrainingConfig | SimSiamConfig), "others are not released"
    return count_learned(open_dataset(ours.dataset, settings.cache_dir), config, other)


compare_task = step("compare with the champion")(compare)


def _has_same_classes(champion: Champion, dataset: str, has_new_classes: bool) -> bool:
    """Return False where other classes replace those of the champion because the caller wants it.

    Raises:
        ReleaseError: The classes differ and the caller did not say so.
    """
    old, new = set(champion.manifest.classes), set(open_dataset(dataset, load_settings().cache_dir).classes)
    if old != new and not has_new_classes:
        changes = [
            f"{word} {name_some(sorted(names))}" for word, names in (("without", old - new), ("with", new - old))
        ]
        raise ReleaseError(
            f"version {champion.version} of {champion.manifest.name} answers {len(old)} classes, {dataset} has "
            f"{len(new)}, {' and '.join(one for one in changes if one[-1] != ' ')}; release under another name, or "
            "replace the classes with --new-classes"
        )
    return old == new


def _check_comparable(champion: Champion, manifest: Manifest) -> None:
    old = champion.manifest
    if old.image_size != manifest.image_size:
        raise ReleaseError(
            f"version {champion.version} of {manifest.name} reads images of {old.image_size} pixels, run "
            f"{manifest.run_id} of {manifest.image_size}: they cannot be compared"
        )


def _label(classifier: Classifier, images_NHWC: npt.NDArray[np.uint8], who: str) -> npt.NDArray[np.int64]:
    labels = []
    with show_progress(f"labels of {who}", len(images_NHWC), "images") as advance:
        for part_NHWC in np.array_split(images_NHWC, -(-len(images_NHWC) // BATCH)):
            labels.append(classifier.classify(part_NHWC).argmax(axis=1))
            advance(len(part_NHWC))
    return np.concatenate(labels)


def _find_latency(classifier: Classifier) -> float | None:
    """Return the median of one image with the variant that is served, ms, as it was measured at its release."""
    for timing in classifier.variant.timings:
        if timing.provider == classifier.provider:
            return next((batch.median_ms for batch in timing.batches if batch.batch_size == 1), None)
    return None


@step("register", retries=2, retry_delay_seconds=2)
def register_task(
    bundle: Path, verdict: Verdict, profile: str, is_promoted: bool, was_champion: Collection[str]
) -> str:
    """Enter a bundle into the registry, with its verdict and its card; return its version.

    A version that was champion keeps the verdict that made it so until another one does.
    """
    client = open_store(load_settings())
    manifest = read_bundle(bundle)
    version = register_version(client, bundle, manifest)
    if version in was_champion and not is_promoted:
        return version
    write_verdict(client, manifest.name, version, verdict, summarise(manifest, verdict, profile))
    folder = name_folder(manifest.name, version)
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
        version = get_version(client, name, number)
        if BUNDLE_TAG not in version.tags:
            raise ReleaseError(
                f"version {number}, the champion of {name}, was not registered by this version of Darkroom: nothing "
                "can be compared with it; --mode forced --why REASON releases without a comparison"
            )
        folder = fetch_bundle(client, settings.bundles_dir, version)
    except ReleaseError:
        if mode == "forced":
            return None
        raise
    return Champion(number, read_bundle(folder), folder)
