"""Makes the small homes of earlier versions that `test_homes.py` opens: `python -m tests.upgrade.make_homes COMMIT...`.

Each commit's own code draws images, trains one recipe for an epoch, releases it and gives one champion; what it wrote
as text goes into `homes/<commit>.json`, path by path, with the size of what is left out (weights, models, databases).
A test writes the files back; what has no text stands there as a file of zeros.
"""

import getpass
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOMES = Path(__file__).parent / "homes"
KEPT = (".json", ".jsonl")
LEFT_OUT = ("artifacts/", "prefect/", "locks/", "data/", "cache/.locks/")
SETTINGS = ("dataset=shapes", "epochs=1", "limit_train=200", "batch_size=50")
COMMANDS = (
    ("data", "add", "shapes", "--image-size", "16"),
    ("train", "resnet18_cifar10_exp2", *(word for one in SETTINGS for word in ("--set", one))),
    ("release", "RUN", "--as", "shapes"),
)


def make_home(commit: str, scratch: Path) -> dict[str, str | int]:
    """Return the files of a home that a commit's code made: their text, or their size in bytes."""
    code, home = scratch / "code", scratch / "home"
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(code)], check=True)
    subprocess.run(["git", "-C", str(code), "checkout", "--quiet", commit], check=True)
    # A busy machine needs longer than some versions waited for Prefect's server.
    [orchestration] = code.glob("flows/**/orchestration.py")
    orchestration.write_text(
        re.sub(r"^(START_TIMEOUT_S) = \d+$", r"\1 = 600", orchestration.read_text(), flags=re.MULTILINE)
    )
    variables = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    variables |= {"DARKROOM_HOME": str(home), "PYTHONPATH": str(code)}
    for words in COMMANDS:
        run = next(iter(sorted((home / "checkpoints").glob("*/result.json"))), Path())
        command = [word if word != "RUN" else run.parent.name for word in words]
        start = [sys.executable, "-c", "from flows.cli import main; main()", *command]
        # Refused for its accuracy or not: what it wrote is what counts.
        subprocess.run(start, cwd=code, env=variables, check="release" not in command)
    files = {}
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if path.is_file() and not name.startswith(LEFT_OUT):
            files[name] = hide_people(path.read_text()) if path.suffix in KEPT else path.stat().st_size
    return files


def hide_people(text: str) -> str:
    """Return text without the user and the machine that made the home."""
    return text.replace(f"{getpass.getuser()}@{socket.gethostname()}", "somebody@somewhere")


def main() -> None:
    """Make the homes of the commits that are named."""
    HOMES.mkdir(exist_ok=True)
    for commit in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            files = make_home(commit, Path(scratch))
        (HOMES / f"{commit}.json").write_text(json.dumps(files, indent=1, ensure_ascii=False) + "\n")
        print(commit, len(files), "files")


if __name__ == "__main__":
    main()
