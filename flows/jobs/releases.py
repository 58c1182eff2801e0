"""Released models: promotion, its history, rollback, challengers, canaries."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from flows.jobs.job import (
    DRY_RUN,
    QUIET,
    RELEASED,
    SOURCES,
    VERSIONS,
    Job,
    ReleasedName,
    ReleaseName,
    argument,
    option,
)
from flows.printing.narration import narrating
from model_code.errors import ReleaseError, UsageError
from model_code.release.gate_rules import Fraction, Gain, GateRules, Limit, Metric
from model_code.settings import load_settings
from model_code.tracking.revision import check_revision
from serving.listing import FORM, Form

if TYPE_CHECKING:
    from flows.printing.summaries import ReleaseSummary

REASON = "Reason for the ledger."


class Release(Job):
    """Export a run to ONNX, certify and calibrate it, and make it champion if it is better than the one before.

    Exit status 1: it is not promoted (of a dry run: it would not be).
    """

    command, flow, run_name, is_short = "release", "release-model", "release-{name}", True
    loads = ("PyTorch", "MLflow", "ONNX Runtime")
    is_resumable = True

    source: Annotated[str, SOURCES] = argument("RECIPE|RUN_ID", "A recipe, for its best run, or a run id.")
    name: ReleasedName = option(..., "Registered name: cifar10, food, shapes or any other.", name="--as")
    mode: Literal["enabled", "dry_run", "forced"] = option(
        "enabled", "dry_run changes nothing; forced promotes whatever the verdict is, and needs --why."
    )
    why: str = option("", REASON)
    head: Literal["best", "linear", "knn"] = option(
        "best",
        "Classifier behind a SimSiam backbone: a linear layer, kNN on the training images, or the better one.",
    )
    has_new_classes: bool = option(
        False, "Replace a champion of other classes, without a comparison.", name="--new-classes"
    )
    metric: Metric = option(
        "accuracy", "Figure that has to rise; macro-f1 counts each class alike, however few its images.", name="--by"
    )
    min_gain: Gain | None = option(None, "Least gain of that figure over the champion, a fraction; 0 if not given.")
    max_class_drop: Fraction | None = option(
        None, "Most that a class's recall may fall, a fraction; 0.05 if not given."
    )
    max_latency_ms: Limit | None = option(None, "Latency limit of one image with the fastest variant.")
    max_size_mb: Limit | None = option(None, "Size limit of that variant's file.")
    form: Form = option("table", FORM, name="--format")
    is_quiet: bool = option(False, QUIET, name="--quiet")

    def check(self) -> None:
        if self.mode == "forced" and not self.why:
            raise UsageError('a forced release needs a reason for the ledger: --why "..."')
        from flows.operations.release_source import check_source

        check_source(self.source, self.name, load_settings())

    def run(self) -> None:
        with narrating(self.form, is_quiet=self.is_quiet):
            released = self._release()
        from flows.printing.releases import print_release

        print_release(released, self.form, is_quiet=self.is_quiet)
        if not released.is_champion:
            raise ReleaseError(
                f"{self.name}: not promoted; the lines above say why; --mode forced --why REASON promotes it anyway"
            )

    def _release(self) -> "ReleaseSummary":
        from flows.operations.release import release

        given = {"metric", "min_gain", "max_class_drop", "max_latency_ms"}
        rules = self.model_dump(include=given, exclude_none=True)
        if self.max_size_mb is not None:
            rules["max_size_bytes"] = round(self.max_size_mb * 1e6)
        head = None if self.head == "best" else self.head
        return release(self.source, self.name, self.mode, self.why, GateRules(**rules), head, self.has_new_classes)


class History(Job):
    """Show every move of the champion: who, when, from, to, why, and the gate's verdict."""

    command = "history"

    name: ReleasedName = argument("NAME")
    form: Form = option("table", FORM, name="--format")

    def check(self) -> None:
        check_revision(load_settings())

    def run(self) -> None:
        from flows.operations.history import read_changes
        from flows.printing.inventory import print_history

        print_history(self.name, read_changes(self.name), self.form)


class ListModels(Job):
    """List the registered versions: which one is champion, what it was released from, and the gate's verdict."""

    command = "models"

    name: Annotated[ReleaseName | None, RELEASED] = argument("NAME", default=None)
    form: Form = option("table", FORM, name="--format")

    def check(self) -> None:
        from flows.operations.history import nothing_registered
        from flows.operations.removal import list_registered

        check_revision(load_settings())
        if self.name is not None and not list_registered(load_settings(), self.name):
            raise nothing_registered(load_settings(), self.name)

    def run(self) -> None:
        from flows.printing.inventory import print_versions

        print_versions(load_settings(), self.name, self.form)


class Retire(Job):
    """Remove a registered version and its bundle, but never the champion, its challenger or the one before it.

    The ledger keeps its lines; the run, its figures and its cards stay.
    """

    command, loads = "retire", ("MLflow",)

    name: ReleasedName = argument("NAME")
    version: Annotated[str, VERSIONS] = argument("VERSION")
    dry_run: bool = option(False, DRY_RUN)

    def check(self) -> None:
        from flows.operations.removal import check_retirable

        check_retirable(load_settings(), self.name, self.version)

    def run(self) -> None:
        from flows.operations.removal import retire
        from model_code.disk import format_size

        size = format_size(retire(load_settings(), self.name, self.version, is_dry_run=self.dry_run))
        done = f"would be retired, {size} would be free" if self.dry_run else f"is retired, {size} are free"
        print(f"{self.name}: version {self.version} {done}")


class RollBack(Job):
    """Make the champion before this one the champion again, once its bundle is proven intact."""

    command, flow, run_name, is_urgent = "rollback", "roll-back-model", "roll-back-{name}", True

    name: ReleasedName = argument("NAME", "Registered name.")
    to: Annotated[str | None, VERSIONS] = option(
        None, "Any registered version; the champion before this one if not given.", metavar="VERSION"
    )
    why: str = option("", REASON)
    loads = ("MLflow", "ONNX Runtime")

    def check(self) -> None:
        from flows.operations.history import check_rollback

        check_rollback(self.name, self.to, self.why)

    def run(self) -> None:
        from flows.operations.rollback import roll_back
        from flows.printing.lines import print_line

        change = roll_back(self.name, self.to, self.why)
        print(f"{self.name}: version {change.to_version} is champion (version {change.from_version} before)")
        print_line(f"  {change.verdict}")
        print(f"  next: darkroom history {self.name}")


class Challenge(Job):
    """Let a registered version look at the images that NAME's champion answers, and count where they agree.

    Who asks gets the champion's answer only; GET /v1/models and /metrics show the agreement.
    """

    command = "challenge"

    name: ReleasedName = argument("NAME")
    version: Annotated[str | None, VERSIONS] = argument("VERSION", default=None)
    is_ended: bool = option(False, "No challenger any more.", name="--none")
    loads = ("MLflow",)

    def check(self) -> None:
        if (self.version is None) != self.is_ended:
            raise UsageError(f"give either a version of {self.name}, see `darkroom models {self.name}`, or --none")
        if self.version is not None:
            from flows.operations.history import check_challenger

            check_challenger(self.name, self.version)

    def run(self) -> None:
        from model_code.release.challenge import challenge

        challenge(self.name, self.version)
        state = "no challenger" if self.version is None else f"version {self.version} is challenger"
        print(f"{self.name}: {state}")


class Canary(Job):
    """Let a registered version answer a share of NAME's requests, and compare what people correct.

    Without VERSION: how many answers of champion and canary got another label since the canary began. The service
    has to run with --log-requests and --feedback.
    """

    command, loads = "canary", ("MLflow", "ONNX Runtime")

    name: ReleasedName = argument("NAME")
    version: Annotated[str | None, VERSIONS] = argument("VERSION", default=None)
    share: Annotated[float, Field(gt=0, le=1)] | None = option(
        None, "Share of the requests that VERSION answers; 0.1 if not given."
    )
    decides: bool = option(
        False, "Promote it if people correct it significantly less often, withdraw it if more often.", name="--decide"
    )
    ends: bool = option(False, "No canary any more.", name="--none")
    form: Form = option("table", FORM, name="--format")

    @property
    def loading(self) -> tuple[str, ...]:
        is_shown = not (self.decides or self.ends or self.version is not None)
        return () if is_shown else self.loads if self.decides else ("MLflow",)

    def check(self) -> None:
        if (self.version is not None) + self.decides + self.ends > 1:
            raise UsageError("give one of VERSION, --decide and --none")
        if self.share is not None and self.version is None:
            raise UsageError(f"--share goes with a version of {self.name}, see `darkroom models {self.name}`")
        if self.form != "table" and (self.version is not None or self.ends):
            raise UsageError(f"--format {self.form} goes with a comparison: darkroom canary {self.name}")
        if self.version is not None:
            from flows.operations.history import check_challenger

            check_challenger(self.name, self.version)

    def run(self) -> None:
        if self.version is not None or self.ends:
            from model_code.release.challenge import challenge

            share = self.share or 0.1
            challenge(self.name, self.version, share)
            state = "no canary"
            if self.version is not None:
                state = f"version {self.version} answers {100 * share:g} % of the requests"
                state += f"\n  next: darkroom canary {self.name}"
            print(f"{self.name}: {state}")
            return
        from flows.operations.canary import compare_canary, decide_canary
        from flows.printing.inventory import print_canary

        comparison = decide_canary(self.name) if self.decides else compare_canary(self.name)
        print_canary(comparison, self.form, is_decided=self.decides)
