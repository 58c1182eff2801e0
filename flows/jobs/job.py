"""The definition of a job: a frozen request whose fields are the options of its command and the form of its flow."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from model_code.errors import UsageError
from model_code.release.names import check_release_name
from model_code.settings import load_settings

QUIET = "Results and errors only: neither progress nor lines about the work."
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
        loads: What the command loads before it works, for its first line; empty if it answers at once.
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
    loads: ClassVar[str] = ""

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
            reason = first["msg"].removeprefix("Value error, ")
            raise UsageError(
                reason if first["type"] == "value_error" else f"{option}={first['input']}: {reason}"
            ) from error

    @property
    def has_flow(self) -> bool:
        """True if the command runs as a Prefect flow."""
        is_waited_for = not self.is_short or load_settings().has_prefect_server
        return bool(self.flow) and not self.is_urgent and is_waited_for

    @property
    def has_loads(self) -> bool:
        """True if the command loads what `loads` says."""
        return bool(self.loads)

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


@dataclass(frozen=True)
class Choices:
    """Marks a field whose form and shell completion offer a list; the command takes any text and says what is wrong.

    Attributes:
        values: Returns the list.
    """

    values: Callable[[], Collection[str]]


def _check_name(name: str) -> str:
    check_release_name(name)
    return name


RecipeName = Annotated[str, Choices(_list_recipes)]
ReleaseName = Annotated[str, AfterValidator(_check_name)]
