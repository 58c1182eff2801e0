"""The `darkroom` command, built from the jobs: each field of a request is an option."""

import errno
import inspect
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, NoReturn, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from flows.entry import INTERRUPTED, begin_work, check_interrupted
from flows.jobs import JOBS
from flows.jobs.job import Choices, Job, name_option
from flows.printing.narration import narrating, showing_silence
from model_code.disk import check_writable
from model_code.errors import DarkroomError, PeerEndedError, UsageError, first_line
from model_code.settings import load_settings, read_rank
from model_code.tracking.revision import check_revision
from serving.errors import ServingError
from serving.listing import find_width, fold_line
from serving.printable import show

MEMORY_REMEDY = "give --set engine.pictures=streamed, --set engine.parts=N or a smaller --set batch_size"
KEPT = "; what was finished is kept, the same command goes on from there"
_OUTPUT_ERRORS = {errno.EPIPE, errno.ENOSPC, errno.EIO}
TYPES: dict[Any, click.ParamType[Any]] = {
    bool: click.BOOL,
    int: click.INT,
    float: click.FLOAT,
    Path: click.Path(path_type=Path),
}


def main() -> None:
    """Run the command; an error that Darkroom raises on purpose is one line and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files and classes may have any characters
    try:
        status = darkroom(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        sys.exit(status)
    except (KeyboardInterrupt, click.Abort):
        _end_interrupted()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        _end_without(error)
    except (DarkroomError, ServingError) as error:
        rank, count = read_rank()
        # Print from ranks 0 and 1 only: at least one is not the dead peer.
        if not (isinstance(error, PeerEndedError) and rank > 1):
            who = f"process {rank + 1} of {count}: " if count > 1 else ""
            width = find_width() if sys.stderr is not None and sys.stderr.isatty() else None
            click.echo(fold_line(show(f"darkroom: {who}{error}"), width), err=True)
        sys.exit(getattr(error, "exit_status", 1))
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT_ERRORS:
            _end_unwritten(error)
        if type(error).__name__ == "OutOfMemoryError":
            click.echo(
                f"darkroom: the device's memory is full ({str(error).splitlines()[0]}); {MEMORY_REMEDY}", err=True
            )
            sys.exit(1)
        if not _is_of_a_server(error):
            raise
        reason = first_line(error)
        click.echo(f"darkroom: MLflow or Prefect failed: {reason}; is its server running, the disk full?", err=True)
        sys.exit(1)


def _end_interrupted(remedy: str = "") -> NoReturn:
    """End at once with the shell's status of Ctrl-C: every write is atomic, and children end with their parent."""
    click.echo(f"\ndarkroom: interrupted{remedy}", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def _end_unwritten(error: OSError) -> NoReturn:
    """End where the output cannot be written, without a word if who reads it has gone (`| head`)."""
    if error.errno != errno.EPIPE:
        with suppress(OSError):
            os.write(2, f"darkroom: cannot write the output: {error.strerror}\n".encode())
    os._exit(1)  # the interpreter's own end would write it once more


def _is_of_a_server(error: Exception) -> bool:
    """Return True for errors of MLflow, Prefect and what they talk through."""
    return type(error).__module__.split(".")[0] in {"mlflow", "prefect", "httpx", "sqlalchemy", "requests"} or (
        "Failed to reach API" in str(error)
    )


# Commands in the order of the work; the help shows them under these headings.
WORKFLOW = {
    "Images": ("data",),
    "Training": ("recipes", "train", "train-all", "sweep", "runs", "prune", "report", "ui"),
    "Releases": ("release", "models", "history", "rollback", "challenge", "canary", "retire"),
    "Predictions": ("serve", "predict", "feedback"),
    "This machine": ("quickstart", "doctor", "deploy", "heal"),
}


class SentenceGroup(click.Group):
    """Commands whose help is in whole sentences.

    Attributes:
        headings: Commands under each heading; the others come last.
    """

    headings: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the work, not of the alphabet."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of commands for each heading."""
        known = {name for names in self.headings.values() for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in known)
        for heading, names in {**self.headings, "Commands": others}.items():
            commands = [(name, self.commands[name]) for name in names if name in self.commands]
            rows = [(name, " ".join((command.help or "").split("\n\n")[0].split())) for name, command in commands]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class WorkflowGroup(SentenceGroup):
    """The `darkroom` command, whose help is in the order of the work."""

    headings = WORKFLOW

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Say how a shell learns to complete."""
        with formatter.section("Completion in bash"):
            formatter.write_text('eval "$(_DARKROOM_COMPLETE=bash_source darkroom)"')


@click.group(cls=WorkflowGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="darkroom")
@click.pass_context
def darkroom(context: click.Context) -> None:
    """Image classifiers from images to a prediction over HTTP.

    State lives under DARKROOM_HOME (default ./.darkroom).
    """
    if context.invoked_subcommand != "train" and read_rank()[1] > 1:
        raise UsageError(
            f"{context.invoked_subcommand} runs in one process; under torchrun there is only `darkroom train RECIPE`"
        )


GROUPS = {
    "data": SentenceGroup("data", help="Add images, see what is there, remove what is not needed."),
    "runs": SentenceGroup(
        "runs", help="See the runs on this machine, remove what is not needed, bring offline runs to where MLflow is."
    ),
}


class OwnCommand(click.Command):
    """A command that a group of its own name calls; usage lines name it once."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,  # noqa: ANN401 - as click.Command
    ) -> click.Context:
        """Return a context beside that of the group."""
        return super().make_context(info_name, args, parent and parent.parent, **extra)


class CommandWithWords(SentenceGroup):
    """A command that also has commands of its own: `recipes [NAME]` and `recipes new`."""

    def __init__(self, own: click.Command) -> None:
        super().__init__(own.name, help=own.help, subcommand_metavar="[NAME] | COMMAND [ARGS]...")
        self.own = OwnCommand(own.name, params=own.params, callback=own.callback, help=own.help)

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Give the line to the command itself, unless it begins with the word of another."""
        if not args or args[0] not in (*self.commands, *context.help_option_names):
            args = [str(self.name), *args]
        return super().parse_args(context, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of the command itself, then the others' names."""
        options = [one for one in self.own.get_params(ctx) if isinstance(one, click.Option)]
        with formatter.section("Options"):
            formatter.write_dl([record for one in options if (record := one.get_help_record(ctx)) is not None])
        self.format_commands(ctx, formatter)

    def get_command(self, context: click.Context, cmd_name: str) -> click.Command | None:
        """Return one of its commands, or the command itself by its name."""
        return self.own if cmd_name == self.name else super().get_command(context, cmd_name)


class ServiceCommand(click.Command):
    """The service's own command, which is loaded when it is called."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,  # noqa: ANN401 - as click.Command
    ) -> click.Context:
        """Return the context of the service's command."""
        from serving.launcher import serve

        begin_work()
        return serve.make_context(info_name, args, parent, **extra)


def _end_without(error: ModuleNotFoundError) -> NoReturn:
    """Say which library is missing; also where one asks for another's version."""
    library = (error.name or "").partition(".")[0]
    if not library or find_spec(library) is not None:  # it is here, and something in it or in this code is not
        raise error
    remedy = f'pip install "darkroom[train,serve]"{"".join(getattr(error, "__notes__", ()))}'
    click.echo(f"darkroom: this command needs {library}, which is not installed: {remedy}", err=True)
    sys.exit(1)


def build_command(kind: type[Job]) -> click.Command:
    """Return the command of a job: its docstring is the help, its fields are the parameters."""

    def run(**given: object) -> None:
        start(kind.make(**given))

    parameters = [_build_parameter(name, field) for name, field in kind.model_fields.items()]
    return click.Command(kind.command.split()[-1], params=parameters, callback=run, help=inspect.getdoc(kind))


def start(job: Job) -> None:
    """Run a job, as a Prefect flow if it is one; only the first process of a training has a flow."""
    job.check()
    is_quiet, loading = getattr(job, "is_quiet", False), job.loading if read_rank()[0] == 0 else ()
    if loading:
        check_home(job)
        with _narrating(job):
            print(f"{job.command}: loading {', '.join(loading)}", flush=True)
    try:
        with showing_silence(job.command) if loading and not is_quiet else nullcontext():
            _run(job)
        job.serve()
    except KeyboardInterrupt:
        _end_interrupted(KEPT if job.is_resumable and not getattr(job, "dry_run", False) else "")
    except ModuleNotFoundError as error:
        if getattr(job, "offline", None) is False and (error.name or "").startswith(("mlflow", "prefect")):
            error.add_note("; --offline does without MLflow and Prefect")
        raise


def check_home(job: Job) -> None:
    """Refuse a home in which a command could not do its work, before anything is loaded for it.

    Raises:
        DataError: It cannot be written.
        TrackingError: A newer MLflow has written its database.
    """
    settings = load_settings()
    if job.writes_home:
        check_writable(settings.home, job.command)
    if "MLflow" in job.loading:
        check_revision(settings)


def _narrating(job: Job) -> AbstractContextManager[None]:
    return narrating(getattr(job, "form", "table"), is_quiet=getattr(job, "is_quiet", False))


def _run(job: Job) -> None:
    with _narrating(job):
        job.prepare()
        if is_flow := job.has_flow and read_rank()[0] == 0:
            from flows.operations.orchestration import configure

            configure(load_settings())  # before anything imports prefect
    if not is_flow:
        begin_work()
        job.run()
        return
    from flows.operations.flow import build_flow

    def work(**_: object) -> None:
        check_interrupted()
        job.run()

    begin_work()
    build_flow(type(job), work)(**job.model_dump())


def _build_parameter(name: str, field: FieldInfo) -> click.Parameter:
    kind, is_repeatable = _find_kind(field.annotation)
    shown: Any = field.json_schema_extra
    value_type = click.Choice(get_args(kind)) if get_origin(kind) is Literal else TYPES.get(kind, click.STRING)
    common: dict[str, Any] = {"type": value_type, "required": field.is_required()}
    if not field.is_required():
        common["default"] = field.default
    if choices := next((one for one in field.metadata if isinstance(one, Choices)), None):
        complete = choices.complete
        common["shell_complete"] = lambda context, _, begun: complete(begun, context.params)
    if metavar := shown.get("argument"):
        metavar += "..." if is_repeatable else ""
        metavar = metavar if field.is_required() else f"[{metavar}]"
        return click.Argument([name], **common, metavar=metavar, nargs=-1 if is_repeatable else 1)
    return click.Option(
        [name_option(name, field), name],
        **common,
        metavar=shown["metavar"],
        multiple=is_repeatable,
        is_flag=kind is bool,
        show_default=not field.is_required() and field.default not in (None, "", ()) and kind is not bool,
        help=field.description,
    )


def _find_kind(annotation: Any) -> tuple[Any, bool]:  # noqa: ANN401 - any type
    """Return the type of one value of a field, and True if there may be several."""
    inner = [one for one in get_args(annotation) if one is not NoneType]
    if get_origin(annotation) is tuple:
        return _find_kind(inner[0])[0], True
    if get_origin(annotation) is Annotated or NoneType in get_args(annotation):
        return _find_kind(inner[0])
    return annotation, False


for _group in GROUPS.values():
    darkroom.add_command(_group)
for _kind in sorted(JOBS, key=lambda kind: kind.command.count(" ")):
    *_groups, _word = _kind.command.split() or [""]
    if _groups:
        _parent = darkroom.commands[_groups[0]]
        if not isinstance(_parent, click.Group):
            _parent = CommandWithWords(_parent)
            darkroom.add_command(_parent)
        _parent.add_command(build_command(_kind))
    elif _word:
        darkroom.add_command(build_command(_kind))
darkroom.add_command(ServiceCommand("serve", help="Answer predictions over HTTP with the released models."))
