"""Commands, options and make targets in README and docs, compared with the real parser and Makefile."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The guides name files that their reader makes; test_guides.py makes them.
DESCRIPTIONS = [page for page in PAGES if page.parent.name != "adding"]
COMMAND = re.compile(r"\bdarkroom ([a-z][a-z-]*\b[^|\n]*)")
# First and second words of commands of two words.
GROUPS = {"data": None, "runs": None, "recipes": {"new"}}


def read_code(text):
    """Return the lines of indented blocks, without their comments, and what stands in backticks."""
    return [line.partition(" # ")[0] for line in text.splitlines() if line.startswith("    ")] + re.findall(
        r"`([^`]+)`", text
    )


def read_commands(text):
    """Return {command: options} of every `darkroom COMMAND --option ...`."""
    found = {}
    for code in read_code(text):
        for match in COMMAND.finditer(code):
            words = match.group(1).split()
            seconds = GROUPS.get(words[0], ())
            length = 2 if seconds is None or (words[1:2] and words[1] in seconds) else 1
            options = {word.partition("=")[0] for word in words[length:] if word.startswith("--")}
            found.setdefault(" ".join(words[:length]), set()).update(options)
    return found


def read_targets(text):
    return {target for code in read_code(text) for target in re.findall(r"^ *make ([a-z-]+)", code)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(darkroom, page):
    for command, options in read_commands(page.read_text()).items():
        done = darkroom(*command.split(), "--help")
        assert done.status == 0, done.err
        known = set(re.findall(r"--[a-z][a-z-]*", done.out))
        assert options <= known, f"darkroom {command} in {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page):
    known = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert read_targets(page.read_text()) <= known


@pytest.mark.parametrize("page", [*DESCRIPTIONS, ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_named_tests_exist(page):
    for code in re.findall(r"`([^`]+)`", page.read_text()):
        if match := re.fullmatch(r"([\w/]*test_\w+\.py)(?:::(\w+))?", code.replace("\n", "")):
            path, name = match.groups()
            assert (ROOT / path).is_file(), f"{page.name} names {code}"
            assert name is None or f"def {name}(" in (ROOT / path).read_text(), f"{page.name} names {code}"


def test_every_command_is_documented(darkroom):
    listed = re.findall(r"^  ([a-z-]+)  ", darkroom("--help").out.partition("--help ")[2], re.MULTILINE)
    assert len(listed) > 10
    documented = {command.split()[0] for command in read_commands((ROOT / "docs/commands.md").read_text())}
    assert set(listed) == documented


def test_a_wrong_option_would_be_found(darkroom):
    [(command, options)] = read_commands("    darkroom train NAME --no-such-option  # --nor-this\n").items()
    assert (command, options) == ("train", {"--no-such-option"})
    assert "--no-such-option" not in darkroom("train", "--help").out
    assert read_targets("    make no-such-target\n") == {"no-such-target"}
