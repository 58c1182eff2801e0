"""What flows return: small, checked and serialisable, so that Prefect can keep it across runs."""

from pydantic import BaseModel, ConfigDict

from model_code.training.run_folder import RunResult


class ReleaseSummary(BaseModel):
    """One released model.

    Attributes:
        name: Registered name.
        version: In the registry; None for a dry run.
        previous_version: That was champion before; None if there was none.
        run_id: MLflow run that trained it.
        recipe: Recipe name.
        profile: Of the run: `full`, `smoke` or `custom`.
        sha256: Of model.onnx.
        test_accuracy: In [0, 1]; None without test pictures.
        max_difference: Largest difference of a probability between onnxruntime and PyTorch.
        parity_split: Which pictures were compared: `test`, or `validation` where there are no test pictures.
        parity_count: How many, at each batch size.
        bundle: Folder with model.onnx and manifest.json.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str | None
    previous_version: str | None
    run_id: str
    recipe: str
    profile: str
    sha256: str
    test_accuracy: float | None
    max_difference: float
    parity_split: str
    parity_count: int
    bundle: str


class ReportSummary(BaseModel):
    """One written report.

    Attributes:
        markdown: Path of report.md.
        page: Path of report.html.
        run_count: Finished runs that MLflow holds.
        run_id: MLflow run that keeps the report.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    markdown: str
    page: str
    run_count: int
    run_id: str


class Outcome(BaseModel):
    """What happened to one run of train-all: its result, or the reason why there is none.

    Attributes:
        recipe: Recipe name.
        seed: Of the run.
        result: None when there is none.
        was_cached: Whether the result is that of an earlier run.
        is_skipped: Whether what it needs is not here: its pictures, or weights that cannot be downloaded.
        error: Why there is no result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    seed: int
    result: RunResult | None = None
    was_cached: bool = False
    is_skipped: bool = False
    error: str = ""
