"""Results of commands as records, for `--format json` and `csv`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

# These import torch and MLflow, for which JSON of added images need not wait.
if TYPE_CHECKING:
    from flows.printing.summaries import Choice, Outcome, ReleaseSummary
    from model_code.data.add import AddedDataset
    from model_code.report.files import ReportFiles
    from model_code.training.run_folder import RunResult

Record = Mapping[str, Any]


def describe_added(added: "AddedDataset") -> Record:
    """Return a data set as `data list` describes it, whether it was there already, and what was left out."""
    dataset = added.dataset
    return {
        "dataset": dataset.name,
        "counts": {name: len(split.labels_N) for name, split in dataset.splits.items()},
        "classes": list(dataset.classes),
        "image_size": dataset.image_size,
        "checksum": dataset.checksum,
        "source": dataset.source,
        "is_reused": added.reused,
        "left_out": [{"file": one.name, "reason": one.reason} for one in added.skipped if not one.is_note],
    }


def describe_result(result: "RunResult", seed: int) -> Record:
    """Return a finished run with its figures, each under its name in MLflow."""
    kept = {"run_id", "recipe", "profile", "dataset", "seconds", "epochs", "best_epoch", "weights_sha256"}
    return {**result.model_dump(include=kept, mode="json"), "seed": seed, **result.metrics}


def describe_outcomes(outcomes: "Sequence[Outcome]", released: "Sequence[Choice]" = ()) -> list[Record]:
    """Return a record for each run of train-all, then one for each release; `record` tells them apart."""
    records: list[Record] = []
    for outcome in outcomes:
        result = outcome.result
        state = "kept" if outcome.was_cached else "done"
        if result is None:
            state = "skipped" if outcome.is_skipped else "failed"
        records.append(
            {
                "record": "run",
                "recipe": outcome.recipe,
                "seed": outcome.seed,
                "state": state,
                "error": outcome.error or None,
                **({} if result is None else describe_result(result, outcome.seed)),
            }
        )
    for choice in released:
        shown = {"model": choice.name, "recipe": choice.run.recipe, "run_id": choice.run.run_id}
        if choice.released is not None:
            shown |= describe_release(choice.released)
        records.append({"record": "release", **shown, "error": choice.error or None})
    return records


def describe_release(release: "ReleaseSummary") -> dict[str, Any]:
    """Return what was decided of a release, on which numbers, and what is served."""
    from flows.printing.releases import describe_decision

    manifest, verdict = release.manifest, release.verdict
    return {
        "model": manifest.name,
        "version": release.version,
        "is_champion": release.is_champion,
        "mode": release.mode,
        "champion_before": release.champion_before,
        "decision": describe_decision(release),
        "recipe": manifest.recipe,
        "run_id": manifest.run_id,
        "profile": release.profile,
        "sha256": manifest.fp32.sha256,
        "precisions": [variant.precision for variant in manifest.offered],
        "verdict": None if verdict is None else verdict.summary,
        "metric": None if verdict is None else verdict.rules.metric,
        **({} if verdict is None else verdict.model_dump(mode="json", exclude={"classes", "rules", "is_promoted"})),
    }


def describe_report(files: "ReportFiles", run_count: int, run_id: str) -> Record:
    """Return where a report is, on how many runs, and the MLflow run that keeps a copy."""
    return {"page": str(files.page), "markdown": str(files.markdown), "run_count": run_count, "run_id": run_id}
