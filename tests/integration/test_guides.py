"""The pages of docs/adding, followed to the letter in a copy: what they write, and the tests that they name."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "adding").glob("*.md"))
FOLDERS = ("docs", "flows", "model_code", "serving", "tests")
# Most files that each page may ask for, tests included.
MOST_FILES = {"endpoint": 3, "job": 3, "layout": 3, "network": 3, "precision": 2}
CODE = re.compile(r"`([\w./]+)`[^`\n]*:\n\n(?:```\w+\n(.*?)```|((?:    .*\n)+))", re.DOTALL)
ROW = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)


@pytest.fixture
def copy(tmp_path):
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("prefect.yaml", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def read_files(root):
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in root.rglob("*")
        if file.is_file() and not {"__pycache__", ".pytest_cache"}.intersection(file.parts)
    }


def run(copy, line):
    program, *words = shlex.split(line, comments=True)
    module = ["-m", "pytest"] if program.endswith("pytest") else []
    done = subprocess.run(
        [sys.executable, *module, *words],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_followed_to_the_letter_works(page, copy):
    text, before = page.read_text(), read_files(copy)
    for name, fenced, indented in CODE.findall(text):
        file = copy / name
        written = "\n\n" + fenced if file.exists() and fenced.startswith("def ") else fenced or indented
        file.write_text((file.read_text() if file.exists() else "") + written)
    for line in re.findall(r"^    (\.venv/bin/.*)$", text, re.MULTILINE):
        run(copy, line)
    after = read_files(copy)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == set(ROW.findall(text.partition("\n## ")[0]))
    assert len(changed) <= MOST_FILES[page.stem]
