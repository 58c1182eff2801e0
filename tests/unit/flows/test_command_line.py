"""The command's contract: every command, option and default, as `commands.json` beside this file holds them.

Whoever changes them on purpose writes the file anew: `python -m tests.unit.flows.test_command_line`.
"""

import fcntl
import json
import os
import pty
import shlex
import sqlite3
import struct
import subprocess
import sys
import termios
from contextlib import closing, suppress
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flows import cli
from flows.cli import darkroom
from flows.jobs.data import CheckData
from flows.jobs.machine import Doctor
from flows.jobs.study import TrainAll
from flows.jobs.training import Train
from model_code.data.add import add_dataset
from model_code.errors import DataError
from model_code.recipes.catalog import RECIPES, build_config, format_command
from model_code.training.run_folder import RunRecord, create_run_folder
from tests.unit.tracking.small_store import open_small_store

ROOT = Path(__file__).parents[3]
CONTRACT = Path(__file__).with_name("commands.json")
# Its options are the service's own.
ELSEWHERE = {"serve"}


@pytest.fixture(autouse=True)
def own_addresses(monkeypatch):
    """Addresses that other tests of this process have set are not for commands."""
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)


def list_commands(group, path=()):
    """Every command below a group, by the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if own := getattr(command, "own", None):
            yield " ".join((*path, name)), own
        if isinstance(command, click.Group):
            yield from list_commands(command, (*path, name))
        elif name not in ELSEWHERE:
            yield " ".join((*path, name)), command


def describe(parameter):
    """What a person can give: `text`, `required path, repeatable`, `full|smoke = full`."""
    choices = getattr(parameter.type, "choices", None)
    kind = "|".join(choices) if choices else parameter.type.name.removesuffix(" range")
    required = "required " if parameter.required else ""
    repeatable = ", repeatable" if parameter.nargs == -1 or getattr(parameter, "multiple", False) else ""
    default = parameter.to_info_dict()["default"]
    has_default = default not in (None, (), [], "") and default is not False
    shown = f" = {default:g}" if isinstance(default, int | float) else f" = {default}"
    return f"{required}{kind}{repeatable}" + (shown if has_default else "")


def read_parser():
    """Each command's arguments in order, then its options by name."""
    table = {}
    for path, command in list_commands(darkroom):
        arguments = [one for one in command.params if isinstance(one, click.Argument)]
        options = sorted((one for one in command.params if one not in arguments), key=lambda one: one.opts)
        named = [(one.make_metavar(None).strip("[]."), one) for one in arguments]
        named += [(" ".join(one.opts + one.secondary_opts), one) for one in options]
        table[path] = {name: describe(one) for name, one in named}
    return table


def test_every_command_takes_what_it_took():
    written, parser = json.loads(CONTRACT.read_text()), read_parser()
    assert set(parser) == set(written)
    for path in written:
        assert list(parser[path].items()) == list(written[path].items()), path


@pytest.mark.parametrize(("path", "command"), list_commands(darkroom))
def test_every_help_is_whole_sentences(path, command):
    assert command.help.splitlines()[0].endswith(".")
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.help:
            assert parameter.help.endswith("."), f"{path} {parameter.opts}"


def test_a_shell_completes_the_names_of_recipes():
    asked = {"_DARKROOM_COMPLETE": "bash_complete", "COMP_WORDS": "darkroom train fastnet_c", "COMP_CWORD": "2"}
    shown = CliRunner().invoke(darkroom, prog_name="darkroom", env=asked).output
    assert [line.removeprefix("plain,") for line in shown.split()] == ["fastnet_cifar10", "fastnet_cifar10_long"]


def test_recipes_are_found_by_a_pattern():
    shown = CliRunner().invoke(darkroom, ["recipes", "fastnet_*", "--format", "json"], prog_name="darkroom").output
    names = [json.loads(line)["recipe"] for line in shown.splitlines()]
    assert names == ["fastnet_cifar10", "fastnet_cifar10_long", "fastnet_food10"]


def test_a_usage_line_names_a_command_with_words_once():
    shown = CliRunner().invoke(darkroom, ["recipes", "--format", "yaml"], prog_name="darkroom").output
    assert shown.startswith("Usage: darkroom recipes [OPTIONS] [NAME]\nTry 'darkroom recipes --help' for help.\n")


COMPLETED = {
    "pets": (
        "train fastnet_cifar10 --data",
        "train-all --data",
        "data check",
        "data list",
        "data diff pets",
        "data export",
        "data remove",
        "sweep fastnet_cifar10 --data",
        "recipes new mine --data",
    ),
    "fastnet_food10": ("recipes", "recipes new mine --from", "train-all --only"),
    "food": (
        "release run --as",
        "models",
        "rollback",
        "retire",
        "predict cat.png --model",
        "challenge",
        "canary",
        "history",
    ),
}


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, lines in COMPLETED.items() for words in lines])
def test_a_shell_completes_data_sets_and_released_names(tmp_path, monkeypatch, name, words):
    for file in ("cache/pets/manifest.json", "cache/plants/manifest.json", "bundles/food/champion.json"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    begun = "fastnet_f" if name.startswith("fastnet") else name[:2]
    line = f"darkroom {words} {begun}"
    asked = {"_DARKROOM_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    shown = CliRunner().invoke(darkroom, prog_name="darkroom", env=asked).output
    assert [one.removeprefix("plain,") for one in shown.split()] == [name]


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("runs remove", "35789"),
        ("runs pack --out packs", "5"),
        ("release", "3"),
        ("train fastnet_cifar10 --resume", "7"),
    ],
)
def test_a_shell_completes_the_ids_of_runs(tmp_path, monkeypatch, words, completed):
    files = {"3": ("result.json",), "5": ("result.json", "journal.jsonl"), "7": (), "8": ("result.json",), "9": ()}
    for digit, names in files.items():
        record = RunRecord(run_id="ab" + digit * 30, data_checksum="c" * 64, config=build_config("fastnet_cifar10"))
        folder = create_run_folder(tmp_path / "checkpoints", record)
        for name in names:
            (folder.path / name).touch()
        if digit in "89":
            (folder.path / "run.json").write_text("{}")
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    line = f"darkroom {words} ab"
    asked = {"_DARKROOM_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    shown = CliRunner().invoke(darkroom, prog_name="darkroom", env=asked).output
    assert sorted(one.removeprefix("plain,") for one in shown.split()) == [f"ab{digit * 30}" for digit in completed]


@pytest.mark.parametrize("words", ["retire food", "rollback food --to", "challenge food"])
def test_a_shell_completes_the_versions_of_a_name(tmp_path, monkeypatch, words):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    with open_small_store(tmp_path) as (_, client):
        for name, count in (("food", 12), ("shapes", 13)):
            client.create_registered_model(name)
            for _ in range(count):
                client.create_model_version(name, "nowhere")
    line = f"darkroom {words} 1"
    asked = {"_DARKROOM_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    shown = CliRunner().invoke(darkroom, prog_name="darkroom", env=asked).output
    # After an option the shell does not say which name stands before it: versions of all are offered.
    expected = ["1", "10", "11", "12", "13"] if words.endswith("--to") else ["1", "10", "11", "12"]
    assert [one.removeprefix("plain,") for one in shown.split()] == expected


def test_completion_takes_no_framework(tmp_path):
    (tmp_path / "bundles" / "food").mkdir(parents=True)
    (tmp_path / "bundles" / "food" / "champion.json").touch()
    code = (
        "import sys; from flows.cli import main\n"
        "try: main()\n"
        "except SystemExit: print({'torch', 'mlflow', 'prefect', 'numpy'}.intersection(sys.modules))"
    )
    asked = {"_DARKROOM_COMPLETE": "bash_complete", "COMP_WORDS": "darkroom history f", "COMP_CWORD": "2"}
    done = run_code(f"import sys; sys.argv = ['darkroom']; {code}", tmp_path, environment=asked, stdout=subprocess.PIPE)
    assert done.stdout.splitlines() == ["plain,food", "set()"], done.stderr


def test_json_is_a_form_of_every_listing_and_no_option_of_its_own():
    done = CliRunner().invoke(darkroom, ["history", "shapes", "--json"])
    assert (done.exit_code, done.output.splitlines()[-1]) == (2, "Error: No such option '--json'.")


def test_a_command_with_words_lists_its_own_options():
    shown = CliRunner().invoke(darkroom, ["recipes", "--help"]).output
    assert "--format" in shown
    assert "tab-separated in a pipe" in shown
    assert shown.count("--help") == 1
    assert "new" in shown.partition("Commands:")[2]


def test_the_service_is_announced_as_it_announces_itself():
    from serving.launcher import serve

    assert serve.help.startswith(darkroom.commands["serve"].help)


REFUSAL = (
    "import sys; from flows.cli import main\n"
    "try: main()\n"
    "finally: print(sorted({'torch', 'mlflow', 'prefect'}.intersection(sys.modules)))"
)
READING = [["data", "list"], ["recipes"], ["runs", "list"], ["models"], ["history", "shapes"], ["prune", "--dry-run"]]
REFUSED = [
    ["recipes", "nosuch"],
    ["train", "nosuch"],
    ["train", "resnet18_cifar10_exp"],
    ["train", "resnet18_cifar10_exp", "--resume", "12345678"],
    ["train", "resnet18_cifar10_exp", "--data", "nosuch"],
    ["train", "resnet18_cifar10_exp", "--data", "nosuch", "--set", "dataset=other"],
    ["train-all", "--only", "nosuch*"],
    ["train-all", "--only", "resnet18_cifar10_*"],
    ["report", "--out", "/dev/null/report"],
    ["deploy"],
    ["heal"],
    ["data", "add", "mine", "--from", "/nosuch"],
    ["data", "remove", "nosuch"],
    ["release", "nosuch", "--as", "shapes"],
    ["release", "resnet18_cifar10_exp", "--as", "cifar10"],
    ["release", "12345678", "--as", "cifar10"],
    ["rollback", "shapes"],
    ["rollback", "shapes", "--to", "7"],
    ["challenge", "shapes", "7"],
    ["canary", "shapes", "7"],
    ["retire", "shapes", "7"],
    ["runs", "remove", "12345678"],
    ["prune", "--keep", "some"],
]


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["serve", "--help"], *READING, *REFUSED], ids=" ".join
)
def test_answering_takes_no_framework(tmp_path, words):
    code = (
        "import sys; from flows.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code or 0)\n"
        "print(sorted({'torch', 'mlflow', 'prefect', 'scipy', 'bentoml', 'onnxruntime'}.intersection(sys.modules)))"
    )
    done = run_code(code, tmp_path, *words, stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    *_, status, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert (status != "0") == (words in REFUSED or words == ["history", "shapes"])
    assert len(done.stderr.splitlines()) == (status != "0")


BEGINNING = (
    ["train-all", "--release"],
    ["data", "add", "shapes"],
    ["report"],
    ["quickstart"],
)


@pytest.mark.parametrize("words", BEGINNING, ids=" ".join)
def test_a_home_that_cannot_be_written_is_refused_before_anything_is_loaded(words):
    done = run_code(REFUSAL, Path("/proc/home"), *words, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (1, "[]\n")
    assert done.stderr == (
        f"darkroom: {' '.join(words[: 1 + (words[0] == 'data')])}: cannot write below /proc/home: No such "
        "file or directory; make the folder writable, or set DARKROOM_HOME to another one\n"
    )


def test_a_plan_and_an_examination_need_no_home_that_can_be_written(monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", "/proc/home")
    for job in (TrainAll.make(dry_run=True), Doctor.make()):
        cli.check_home(job)
    for job in (TrainAll.make(), CheckData.make(name="pets")):
        with pytest.raises(DataError, match=f"^{job.command}: cannot write below /proc/home: "):
            cli.check_home(job)


@pytest.mark.parametrize(
    "words", [["report"], ["train-all", "--release"], ["history", "shapes"], ["models"]], ids=" ".join
)
def test_a_database_of_a_newer_mlflow_is_refused_before_anything_is_loaded(tmp_path, words):
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('fedcba987654')")
    done = run_code(REFUSAL, tmp_path, *words, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (1, "[]\n")
    assert done.stderr.startswith(f"darkroom: {tmp_path / 'mlflow.db'} was written by a newer MLflow than ")


def test_images_that_fill_no_batch_are_refused_before_a_framework_is_loaded(tmp_path):
    add_dataset("shapes", cache_dir=tmp_path / "cache", data_dir=tmp_path / "data", image_size=16, progress=False)
    words = ("train", "resnet18_cifar10_exp", "--set", "dataset=shapes", "--set", "batch_size=64")
    done = run_code(REFUSAL, tmp_path, *words, "--limit-train", "63", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr.startswith("darkroom: 63 training images are fewer than one batch of 64; raise --limit-train")


@pytest.mark.parametrize(
    ("profile", "changes"),
    [
        ("full", {}),
        ("smoke", {"seed": 3}),
        ("smoke", {"dataset": "shapes", "mean": (0.5, 0.25, 0.125)}),
        ("full", {"epochs": 8, "decay_points": (0.3, 0.6), "limit_train": 900, "engine.precision": "float32"}),
        ("full", {"pretrained_weights": "a file.pth", "has_flip": False, "dataset": "shapes", "std": (1, 1, 0.5)}),
    ],
)
def test_the_command_of_a_run_makes_its_settings(tmp_path, monkeypatch, profile, changes):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    config = build_config("resnet18_cifar10_exp", profile, changes)
    words = shlex.split(format_command(config))
    assert words[:3] == ["darkroom", "train", "resnet18_cifar10_exp"]
    context = darkroom.commands["train"].make_context("train", words[2:])
    assert Train.make(**context.params).config == config


def test_images_of_which_none_could_be_held_out_are_refused_before_a_framework_is_loaded(tmp_path):
    add_dataset("shapes", cache_dir=tmp_path / "cache", data_dir=tmp_path / "data", image_size=16, progress=False)
    words = ("train", "fastnet_cifar10", "--data", "shapes", "--limit-train", "3")
    done = run_code(REFUSAL, tmp_path, *words, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr.startswith("darkroom: validation fraction 0.04 of 3 images leaves 0 for validation; both sides ")


def run_in_terminal(words, home, columns=80):
    """Run the command in a pseudo-terminal; its lines and its status come back."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from flows.cli import main; main()", *words],
        env=environment | {"DARKROOM_HOME": str(home), "TERM": "xterm"},
        cwd=ROOT,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    printed = b""
    with os.fdopen(controller, "rb", buffering=0) as stream, suppress(OSError):  # its end, once the process has ended
        while part := stream.read(4096):
            printed += part
    return click.unstyle(printed.decode()).splitlines(), process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["recipes"], ["data", "list"], ["runs", "list"]], ids=" ".join)
def test_a_terminal_of_80_columns_is_enough(tmp_path, words):
    add_dataset("shapes", cache_dir=tmp_path / "cache", data_dir=tmp_path / "data", image_size=16, progress=False)
    config = build_config("resnet18_cifar10_exp", "smoke", {})
    create_run_folder(tmp_path / "checkpoints", RunRecord(run_id="1" * 32, data_checksum="c" * 64, config=config))
    lines, status = run_in_terminal(words, tmp_path)
    assert status == 0
    assert max(map(len, lines)) <= 80
    if words == ["runs", "list"]:
        assert lines[2].split()[:2] == ["1" * 8, "resnet18_cifar10_exp"]
    if words == ["recipes"]:
        assert set(RECIPES) <= set(" ".join(lines).split()), "no name is broken"


RUNS_LIST = ["runs", "list"]
INTERRUPT = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
WHILE_RUNNING = """
from flows.jobs.data import ListData
ListData.run = lambda self: signal.raise_signal(signal.SIGINT)
"""
WHILE_IMPORTING = """
class Finder:
    def find_spec(name, *_):
        if name == "{}":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize(
    "interrupted",
    [WHILE_RUNNING, *(WHILE_IMPORTING.format(name) for name in ("flows.cli", "pydantic", "flows.printing.datasets"))],
)
def test_ctrl_c_ends_with_the_status_of_the_shell(tmp_path, interrupted):
    """Whatever is imported or waited for at that moment: one line, no traceback."""
    done = run_code(f"{INTERRUPT}{interrupted}from flows.entry import main; main()", tmp_path, "data", "list")
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == "darkroom: interrupted"


@pytest.mark.parametrize(("job", "words"), [("data.AddData", ["data", "add", "shapes"]), ("runs.ListRuns", RUNS_LIST)])
def test_only_what_a_repeated_command_goes_on_from_is_promised_at_ctrl_c(tmp_path, job, words):
    module, name = job.split(".")
    code = (
        f"{INTERRUPT}from flows.jobs.{module} import {name}; "
        f"{name}.run = lambda self: signal.raise_signal(signal.SIGINT); from flows.entry import main; main()"
    )
    done = run_code(code, tmp_path, *words, stdout=subprocess.PIPE)
    assert done.returncode == 130
    assert done.stderr.strip() == "darkroom: interrupted" + (
        "" if words == RUNS_LIST else "; what was finished is kept, the same command goes on from there"
    )


SWALLOWING = """
from contextlib import suppress
from flows.entry import check_interrupted
from flows.jobs.data import AddData

def run(self):
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    check_interrupted()

AddData.run = run
"""
WHILE_PREPARING = """
from contextlib import suppress
from flows.jobs.data import AddData

def prepare(self):
    with suppress(BaseException):
        signal.raise_signal(signal.SIGINT)

AddData.prepare = prepare
"""


@pytest.mark.parametrize(
    ("code", "ending"),
    [(SWALLOWING, "; what was finished is kept, the same command goes on from there"), (WHILE_PREPARING, "")],
)
def test_ctrl_c_ends_the_command_though_a_library_swallows_it(tmp_path, code, ending):
    code = f"{INTERRUPT}{code}from flows.entry import main; main()"
    done = run_code(code, tmp_path, "data", "add", "shapes", stdout=subprocess.PIPE)
    assert done.returncode == 130, done.stdout
    assert done.stderr.strip() == f"darkroom: interrupted{ending}"


def run_code(code, home, *words, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=os.environ | {"DARKROOM_HOME": str(home)} | options.pop("environment", {}),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize("form", ["table", "csv"])
def test_output_that_cannot_be_written_is_one_line(tmp_path, form):
    words = ("from flows.entry import main; main()", tmp_path, "recipes", "--format", form)
    with Path("/dev/full").open("wb") as full:
        done = run_code(*words, stdout=full)
    assert (done.returncode, done.stderr) == (
        1,
        "darkroom: cannot write the output: No space left on device\n",
    )
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = run_code(*words, stdout=gone)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_server_that_does_not_answer_is_one_line_though_its_error_is_one_of_the_system(tmp_path):
    code = (
        "import requests\nfrom flows.jobs.data import ListData\nfrom flows.entry import main\n"
        "def ask(self): raise requests.ConnectionError('nobody there')\n"
        "ListData.run = ask\nmain()"
    )
    done = run_code(code, tmp_path, "data", "list", stdout=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith("darkroom: MLflow or Prefect failed: nobody there; ")
    assert len(done.stderr.splitlines()) == 1


def test_a_terminal_of_another_encoding_and_none_at_all_are_no_traceback(tmp_path):
    words = ("from flows.entry import main; main()", tmp_path, "recipes")
    latin = {"PYTHONIOENCODING": "latin-1", "COLUMNS": "80"}
    done = run_code(*words, environment=latin, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fastnet_cifar10" in done.stdout
    done = run_code(f"import os, sys; os.close(1); sys.stdout = None; {words[0]}", *words[1:])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_training_is_checked_without_prefect(tmp_path):
    """Prefect reads PREFECT_API_URL when it is imported: without the embedded server's it starts one more."""
    add_dataset("shapes", cache_dir=tmp_path / "cache", data_dir=tmp_path / "data", image_size=16, progress=False)
    code = (
        "import sys; from flows.jobs.training import Train; "
        "job = Train.make(recipe='resnet18_cifar10_exp', settings=('dataset=shapes',)); job.check(); job.prepare(); "
        "print({'prefect'}.intersection(sys.modules)); import flows.operations.training; "
        "print({'scipy.stats'}.intersection(sys.modules))"  # a second that only a release needs
    )
    done = run_code(code, tmp_path, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout.splitlines()[-2:]) == (0, ["set()", "set()"]), done.stderr


def test_only_a_library_that_is_not_here_is_named(capsys):
    for name in ("json.nosuch", "flows.nosuch"):
        with pytest.raises(ModuleNotFoundError):
            cli._end_without(ModuleNotFoundError(name=name))
    with pytest.raises(SystemExit):
        cli._end_without(ModuleNotFoundError(name="nosuch.part"))
    assert capsys.readouterr().err.startswith("darkroom: this command needs nosuch, which is not installed: ")


if __name__ == "__main__":
    CONTRACT.write_text(json.dumps(read_parser(), indent=1) + "\n")
