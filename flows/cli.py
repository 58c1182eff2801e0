"""The `darkroom` command. Imports are inside the commands, so that `darkroom --help` answers at once."""

import sys
from pathlib import Path
from typing import Literal

import click

from model_code.errors import DarkroomError, PeerEndedError, UsageError
from model_code.settings import load_settings, read_rank
from serving.errors import ServingError
from serving.launcher import serve
from serving.printable import show

MEMORY_REMEDY = "give --set engine.pictures=streamed, --set engine.parts=N or a smaller --set batch_size"
PROFILES = click.Choice(["full", "smoke"])


def main() -> None:
    """Run the command; an error that Darkroom raises on purpose is one line and an exit status."""
    try:
        darkroom()
    except (DarkroomError, ServingError) as error:
        rank, count = read_rank()
        # That another one has ended is told by two, of which one at least is not the one that has.
        if not (isinstance(error, PeerEndedError) and rank > 1):
            who = f"process {rank + 1} of {count}: " if count > 1 else ""
            click.echo(show(f"darkroom: {who}{error}"), err=True)
        sys.exit(getattr(error, "exit_status", 1))
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            click.echo(
                f"darkroom: the device's memory is full ({str(error).splitlines()[0]}); {MEMORY_REMEDY}", err=True
            )
            sys.exit(1)
        if not _is_of_a_server(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        click.echo(f"darkroom: MLflow or Prefect failed: {reason}; is its server running, the disk full?", err=True)
        sys.exit(1)


def _is_of_a_server(error: Exception) -> bool:
    """Whether MLflow, Prefect or what they talk through raised an error."""
    return type(error).__module__.split(".")[0] in {"mlflow", "prefect", "httpx", "sqlalchemy", "requests"} or (
        "Failed to reach API" in str(error)
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="darkroom")
@click.pass_context
def darkroom(context: click.Context) -> None:
    """Image classifiers from pictures to a prediction over HTTP.

    State lives under DARKROOM_HOME (default ./.darkroom).
    """
    if context.invoked_subcommand != "train" and read_rank()[1] > 1:
        raise UsageError(
            f"{context.invoked_subcommand} runs in one process; under torchrun there is only `darkroom train RECIPE`"
        )


@darkroom.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List every recipe with its published figure, or show one recipe's evidence."""
    from flows.printing import tables as printing
    from model_code.recipes.catalog import RECIPES, get_recipe

    if name is None:
        printing.print_recipes(list(RECIPES.values()))
    else:
        printing.print_recipe(get_recipe(name))


@darkroom.group()
def data() -> None:
    """Add pictures and see what is there."""


@data.command("add")
@click.argument("name")
@click.option(
    "--from", "sources", multiple=True, type=click.Path(path_type=Path), help="Folder, zip or tar; repeatable."
)
@click.option("--download", is_flag=True, help="Fetch the published archive (cifar10).")
@click.option(
    "--image-size",
    type=int,
    help="Height and width in pixels; 32 for cifar10 and shapes, 256 for food11 and imagenet-val, else 64 or, for "
    "NAME-with-feedback, that of NAME.",
)
@click.option("--skip", is_flag=True, help="Leave out what fits no layout, links to nothing and empty classes.")
@click.option(
    "--max-bad",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.01,
    show_default=True,
    help="Largest share of a split's images that may not decode; they are left out.",
)
def data_add(
    name: str, sources: tuple[Path, ...], download: bool, image_size: int | None, skip: bool, max_bad: float
) -> None:
    """Pack pictures: NAME is cifar10, shapes (drawn here), food11, imagenet-val, or any name for class folders.

    food11 is read in any of its three layouts; imagenet-val is for evaluation only. NAME-with-feedback is the packed
    NAME with more training pictures, from class folders.
    """
    from model_code.data.add import check_arguments

    check_arguments(name, sources, download, image_size)  # before anything slow starts
    _configure()
    from flows.data import data_flow
    from flows.printing import tables as printing

    paths = [source.resolve() for source in sources]
    printing.print_added(data_flow(name, paths, download, image_size, skip, max_bad))


@data.command("list")
def data_list() -> None:
    """List the packed data sets: counts, classes, size, checksum."""
    from flows.printing import tables as printing
    from model_code.data.cache import list_datasets

    cache_dir = load_settings().cache_dir
    printing.print_datasets(list_datasets(cache_dir), cache_dir)


@darkroom.command()
@click.argument("recipe")
@click.option("--profile", type=PROFILES, default="full", show_default=True)
@click.option("--seed", type=int)
@click.option("--epochs", type=int)
@click.option("--limit-train", type=int, help="Use so many training pictures, before the validation split.")
@click.option("--resume", "resume_run_id", metavar="RUN_ID", help="Continue this interrupted run.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting of the recipe; repeatable.")
def train(
    recipe: str,
    profile: str,
    seed: int | None,
    epochs: int | None,
    limit_train: int | None,
    resume_run_id: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Train one recipe. A repeated command continues a run that was interrupted.

    On N GPUs: torchrun --nproc-per-node N --no-python darkroom train RECIPE
    """
    from flows.plan import plan_run
    from model_code.data.cache import open_dataset

    config = plan_run(recipe, profile, seed, epochs, limit_train, assignments)
    open_dataset(config.dataset, load_settings().cache_dir)  # before anything slow starts
    if read_rank()[0] > 0:
        from flows.experiments.followers import follow_training

        follow_training(config)
        return
    _configure()
    from flows.experiments.training import train_flow
    from flows.printing import tables as printing

    printing.print_result(train_flow(config, resume_run_id))


@darkroom.command("train-all")
@click.option("--profile", type=PROFILES, default="full", show_default=True)
@click.option("--only", "pattern", default="*", metavar="GLOB", help="Recipes by name, e.g. 'resnet18_*'.")
@click.option(
    "--seed",
    "seeds",
    type=int,
    multiple=True,
    help="Repeatable. Without it: three where a claim rests on a difference, else one; in smoke runs one.",
)
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="For every recipe that has it; repeatable."
)
def train_all(profile: str, pattern: str, seeds: tuple[int, ...], assignments: tuple[str, ...]) -> None:
    """Train every recipe, one after another; what was trained before with the same settings is kept.

    Recipes whose pictures are not here, or whose pretrained weights cannot be downloaded, are skipped.
    """
    from flows.plan import plan_all

    configs = plan_all(profile, pattern, seeds, assignments)
    _configure()
    from flows.printing import tables as printing
    from flows.train_all import train_all_flow

    outcomes = train_all_flow(configs)
    printing.print_outcomes(outcomes)
    has_failed = any(outcome.result is None and not outcome.is_skipped for outcome in outcomes)
    if has_failed or all(outcome.is_skipped for outcome in outcomes):
        sys.exit(1)


@darkroom.command()
@click.argument("source", metavar="RECIPE|RUN_ID")
@click.option("--as", "name", required=True, help="Registered name: cifar10, food or shapes.")
@click.option(
    "--mode",
    type=click.Choice(["enabled", "dry_run", "forced"]),
    default="enabled",
    show_default=True,
    help="dry_run changes nothing; forced promotes whatever the verdict is, and needs --why.",
)
@click.option("--why", default="", help="For the ledger.")
@click.option("--min-gain", type=float, help="Least gain of accuracy over the champion, a fraction; 0 if not given.")
@click.option("--max-class-drop", type=float, help="Most that a class's recall may fall, a fraction; 0.05.")
@click.option("--max-latency-ms", type=float, help="Of one picture with the fastest variant; no limit.")
@click.option("--max-size-mb", type=float, help="Of that variant's file; no limit.")
def release(
    source: str,
    name: str,
    mode: Literal["enabled", "dry_run", "forced"],
    why: str,
    max_size_mb: float | None,
    **rules: float | None,
) -> None:
    """Export a run to ONNX, certify and calibrate it, and make it champion if it is better than the one before.

    Exit status 1: it is not promoted (of a dry run: it would not be).
    """
    from pydantic import ValidationError

    from model_code.registry.gate import GateRules
    from model_code.registry.names import check_release_name

    check_release_name(name)
    if mode == "forced" and not why:
        raise UsageError('a forced release needs a reason for the ledger: --why "..."')
    given = {key: value for key, value in rules.items() if value is not None}
    if max_size_mb is not None:
        given["max_size_bytes"] = round(max_size_mb * 1e6)
    try:
        checked = GateRules.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("size_bytes", "size_mb").replace("_", "-")
        raise UsageError(f"--{option} {first['input']}: {first['msg']}") from error
    _configure()
    from flows.operations.release import release_flow
    from flows.printing.releases import print_release

    released = release_flow(source, name, mode, why, checked)
    print_release(released)
    if not released.is_champion:
        sys.exit(1)


@darkroom.command()
@click.argument("name")
@click.option("--json", "is_json", is_flag=True, help="One JSON object per line, the oldest first.")
def history(name: str, is_json: bool) -> None:
    """Show every move of the champion: who, when, from, to, why, and the gate's verdict."""
    from model_code.registry.names import check_release_name

    check_release_name(name)
    from flows.operations.rollback import read_changes
    from flows.printing.releases import print_history

    changes = read_changes(name)
    if is_json:
        for change in changes:
            click.echo(change.model_dump_json())
    else:
        print_history(name, changes)


@darkroom.command()
@click.argument("name")
@click.option("--to", metavar="VERSION", help="Any registered version; the champion before this one if not given.")
@click.option("--why", default="", help="For the ledger.")
def rollback(name: str, to: str | None, why: str) -> None:
    """Make the champion before this one the champion again, once its bundle is proven intact."""
    from model_code.registry.names import check_release_name

    check_release_name(name)
    from flows.operations.rollback import roll_back

    change = roll_back(name, to, why)
    click.echo(f"{name}: version {change.to_version} is champion (version {change.from_version} before)")
    click.echo(f"  {change.verdict}")


@darkroom.command()
@click.argument("name")
@click.argument("version", required=False)
@click.option("--none", "is_ended", is_flag=True, help="No challenger any more.")
def challenge(name: str, version: str | None, is_ended: bool) -> None:
    """Let a registered version look at the pictures that NAME's champion answers, and count where they agree.

    Who asks gets the champion's answer only; GET /v1/models and /metrics show the agreement.
    """
    if (version is None) != is_ended:
        raise UsageError(f"give either a version of {name}, see `darkroom history {name}`, or --none")
    from flows.operations.challenge import challenge as set_challenger

    set_challenger(name, version)
    click.echo(f"{name}: " + ("no challenger" if version is None else f"version {version} is challenger"))


@darkroom.command()
@click.option("--out", type=click.Path(path_type=Path), help="Folder for report.md and report.html.")
def report(out: Path | None) -> None:
    """Write every published figure beside ours, verdicts on the open questions and all curves.

    Without --out the report goes to DARKROOM_HOME/report; MLflow keeps a copy.
    """
    folder = (out or load_settings().home / "report").resolve()
    _configure()
    from flows.printing import tables as printing
    from flows.report import report_flow

    printing.print_report(report_flow(folder))


darkroom.add_command(serve)


@darkroom.command()
@click.argument("sources", nargs=-1, required=True, metavar="IMAGE|URL...")
@click.option("--server", default="http://127.0.0.1:3000", show_default=True)
@click.option("--model", help="Registered name; needed when several are served.")
@click.option("--top-k", type=int, help="Classes to show for each picture.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="json: one object per line.",
)
def predict(sources: tuple[str, ...], server: str, model: str | None, top_k: int | None, form: str) -> None:
    """Ask a running service about pictures, folders of pictures, or URLs (fetched here, not by the service)."""
    import json

    from rich.console import Console

    from serving.client import list_records, render_predictions, write_csv
    from serving.client import predict as ask

    with Console(stderr=True).status("asking about the first pictures") as status:
        result = ask(
            list(sources),
            server=server,
            model=model,
            top_k=top_k,
            on_progress=lambda done: status.update(f"{done} pictures done"),
        )
    if form == "csv":
        write_csv(result, sys.stdout)
    elif form == "json":
        for record in list_records(result):
            click.echo(json.dumps(record))
    elif result.predictions:
        Console().print(render_predictions(result))
    for problem in result.problems:
        click.echo(show(f"darkroom: {problem.source}: {problem.message}"), err=True)
    if result.problems:
        sys.exit(1)


@darkroom.command()
@click.argument("source", metavar="IMAGE")
@click.argument("label")
@click.option("--server", default="http://127.0.0.1:3000", show_default=True)
@click.option("--model", help="Registered name; needed when several are served.")
def feedback(source: str, label: str, server: str, model: str | None) -> None:
    """Tell a running service the true LABEL of a picture, for the next training.

    The service must have been started with --feedback.
    """
    from serving.client import send_feedback

    answer = send_feedback(source, label, server, model)
    click.echo(show(f"{source} is kept as {answer.label} for {answer.model}, {answer.count} pictures with feedback"))


@darkroom.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def ui(port: int) -> None:
    """Open MLflow on the runs and registered models."""
    from model_code.tracking.store import run_ui

    run_ui(load_settings(), port)


@darkroom.command()
def doctor() -> None:
    """Say what this machine can do, and what is missing."""
    from flows.operations.doctor import examine_machine
    from flows.printing.tables import print_findings

    findings = examine_machine()
    print_findings(findings)
    if any(finding.level == "missing" for finding in findings):
        sys.exit(1)


@darkroom.command()
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the service; 0 takes a free one.")
def quickstart(port: int) -> None:
    """Run the whole path on drawn images: data, training, release, service, prediction."""
    _configure()
    from flows.quickstart import quickstart_flow

    quickstart_flow(port)


@darkroom.command()
def deploy() -> None:
    """Write work pools, device slots and the deployments of ./prefect.yaml to the server in PREFECT_API_URL."""
    from flows.operations.deployment import deploy_all

    deploy_all()


@darkroom.command()
@click.option("--every", "every_s", type=click.FloatRange(1), default=30, show_default=True, metavar="SECONDS")
@click.option("--metrics-port", "port", type=click.IntRange(1, 65535), help="Answer Prometheus there.")
def heal(every_s: float, port: int | None) -> None:
    """Start flow runs again whose process died, and skip scheduled ones that piled up, until Ctrl-C."""
    from flows.operations.healing import keep_healing

    keep_healing(every_s, port)


def _configure() -> None:
    """Prepare Prefect, before anything imports it."""
    from flows.operations.orchestration import configure

    configure(load_settings())
