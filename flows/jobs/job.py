"""The definition of a job: a frozen request whose fields are the options of its command and the form of its flow."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from model_code.errors import UsageError
from model_code.hints import explain_rule
from model_code.release.names import check_release_name
from model_code.settings import load_settings

QUIET = "Results and errors only: neither progress, lines about the work nor what to do next."
DRY_RUN = "Say what would be removed; change nothing."
OFFLINE = "Without MLflow, Prefect and a network: a run is recorded in its folder; `darkroom runs` brings it home."


class Job(BaseModel):
    """A request for one job. Subclasses are the commands and the flows of the deployments.

    The docstring is the command's help and the flow's description, a field's description the help of its option and of
    the form. Modules of jobs import frameworks inside of functions: `darkroom --help` reads them all.

    Attributes:
        command: Words on the command line, such as `data add`; empty for a flow without a command.
        flow: Name of the Prefect flow; empty for a command that runs without Prefect.
        run_name: Name of a flow run, with fields in braces; the flow's name if empty.
        is_retried: True if a deployment's run is tried again after a failure.
        is_urgent: True if the command never waits for Prefect.
        is_short: True if the command waits for a Prefect server that PREFECT_API_URL names, but starts none of its own.
        loads: Libraries that the command loads before it works; its first line names them. Empty if it answers at once.
        is_resumable: True if a repeated command goes on from what an interrupted one finished.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", defer_build=True, allow_inf_nan=False, ignored_types=(cached_property,)
    )

    command: ClassVar[str] = ""
    flow: ClassVar[str] = ""
    run_name: ClassVar[str] = ""
    is_retried: ClassVar[bool] = False
    is_urgent: ClassVar[bool] = False
    is_short: ClassVar[bool] = False
    loads: ClassVar[tuple[str, ...]] = ()
    is_resumable: ClassVar[bool] = False

    @classmethod
    def make(cls, **given: object) -> Self:
        """Return the request with the given fields.

        Raises:
            UsageError: A field is missing, unknown or outside its bounds; one line names the option.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            option = name_option(name, cls.model_fields[name]) if name in cls.model_fields else name
            reason = explain_rule(first)
            raise UsageError(
                reason if first["type"] == "value_error" else f"{option}={first['input']}: {reason}"
            ) from error

    @property
    def has_flow(self) -> bool:
        """True if the command runs as a Prefect flow."""
        is_waited_for = not self.is_short or load_settings().has_prefect_server
        return bool(self.flow) and not self.is_urgent and is_waited_for

    @property
    def loading(self) -> tuple[str, ...]:
        """What the command loads with these options; empty if it answers at once."""
        return self.loads

    @property
    def writes_home(self) -> bool:
        """False if a command that loads something needs no writable home."""
        return True

    def check(self) -> None:
        """Refuse what cannot work, before any framework is imported."""

    def prepare(self) -> None:
        """Open what the work needs, before Prefect is imported."""

    def run(self) -> None:
        """Do the work and print what came of it.

        Raises:
            DarkroomError: It was not done; the command then ends with the error's exit status, a flow run as failed.
        """
        raise NotImplementedError

    def serve(self) -> None:
        """Answer until Ctrl-C what `run` has opened, if it has."""


def argument(metavar: str, description: str = "", default: object = ...) -> Any:  # noqa: ANN401 - as pydantic.Field
    """Return a field that the command takes by its position; usage lines show its metavar."""
    return Field(default, description=description, json_schema_extra={"argument": metavar})


def option(
    default: object,
    description: str,
    *,
    name: str = "",
    metavar: str | None = None,
    **bounds: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401 - as pydantic.Field
    """Return a field that the command takes by its name.

    Args:
        default: Value of the field where the option is not given; `...` for a required one.
        description: Help of the option and of the form.
        name: Name of the option, with its dashes; that of the field if empty.
        metavar: Name of the value in the help; its type if None.
        bounds: `ge`, `gt`, `le`, `lt`.
    """
    shown: dict[str, Any] = {"option": name, "metavar": metavar}
    return Field(default, description=description, json_schema_extra=shown, **bounds)


def name_option(name: str, field: FieldInfo) -> str:
    """Return the name of a field's option, or its metavar where it is taken by its position."""
    shown: Any = field.json_schema_extra or {}
    return str(shown.get("argument") or shown.get("option") or "--" + name.replace("_", "-"))


def _list_recipes() -> Collection[str]:
    from model_code.recipes.catalog import list_recipes

    return [entry.name for entry in list_recipes()]


def _list_datasets() -> Collection[str]:
    from model_code.data.cache import list_names

    return list_names(load_settings().cache_dir)


def _list_released() -> Collection[str]:
    from serving.bundle.store import list_released

    return list_released(load_settings().bundles_dir)


def _list_interrupted() -> Collection[str]:
    from model_code.training.run_folder import list_interrupted

    return [folder.path.name for folder in list_interrupted(load_settings().checkpoints_dir)]


def _list_finished(*, is_offline: bool) -> list[str]:
    from model_code.training.run_folder import list_finished

    folders = list_finished(load_settings().checkpoints_dir)
    return [folder.path.name for folder in folders if folder.is_offline == is_offline]


def _list_runs() -> Collection[str]:
    from model_code.training.run_folder import RUN_FILE

    # Damaged ones too, which can be removed.
    return [file.parent.name for file in load_settings().checkpoints_dir.glob(f"[!.]*/{RUN_FILE}")]


def _list_sources() -> Collection[str]:
    return [*_list_recipes(), *_list_finished(is_offline=False)]


def _list_versions(name: str | None) -> Collection[str]:
    from model_code.release.registered import read_registered

    return sorted({one.version for one in read_registered(load_settings(), name) or ()}, key=int)


@dataclass(frozen=True)
class Choices:
    """Marks a field whose shell completion offers a list; the command takes any text and says what is wrong.

    Attributes:
        values: Returns the list.
        field: Field of the request that the list depends on; `values` is called with its value, or None where that is
            not known. Empty if there is none.
        is_in_form: True if a stored form offers these values; not for values of the home or patterns.
    """

    values: Callable[..., Collection[str]]
    field: str = ""
    is_in_form: bool = False

    def complete(self, begun: str, given: Mapping[str, str]) -> list[str]:
        """Return the values that begin so, of a request with the fields that are given so far."""
        values = self.values(given.get(self.field)) if self.field else self.values()
        return [one for one in values if one.startswith(begun)]


def _check_name(name: str) -> str:
    check_release_name(name)
    return name


RECIPES = Choices(_list_recipes, is_in_form=True)
RECIPE_PATTERNS = Choices(_list_recipes)
RecipeName = Annotated[str, RECIPES]
DATASETS, RELEASED = Choices(_list_datasets), Choices(_list_released)
RUNS, INTERRUPTED = Choices(_list_runs), Choices(_list_interrupted)
OFFLINE_RUNS = Choices(partial(_list_finished, is_offline=True))
SOURCES, VERSIONS = Choices(_list_sources), Choices(_list_versions, "name")
DatasetName = Annotated[str, DATASETS]
AnyDatasetName = Annotated[str | None, DATASETS]
ReleaseName = Annotated[str, AfterValidator(_check_name)]
ReleasedName = Annotated[ReleaseName, RELEASED]
