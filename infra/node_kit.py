"""Lists, sizes and cuts what a machine without a network needs: wheels of code and libraries, packed data sets.

With --proof also what `python -m benchmarks.gpu` needs of this checkout.

python infra/node_kit.py kit --data cifar10 --out parts     # then there: cat parts/kit.tar.* | tar x
"""

import argparse
import hashlib
import re
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from model_code.data.cache import MANIFEST_FILE, open_dataset
from model_code.data.progress import show_progress
from model_code.disk import check_free_space, format_size, writing_to
from model_code.errors import DarkroomError, UsageError
from model_code.settings import load_settings

PART_BYTES, SMALLEST_PART_BYTES = 60_000_000, 1_000_000
SUMS_FILE = "SHA256SUMS"
CHECKOUT = Path(__file__).parents[1]
# What no wheel has; the page is the one that `--page` writes.
PROOF = ("benchmarks", "tests", "pyproject.toml", "docs/benchmarks.md")


class Parts:
    """A file that is written as parts of a size, with their checksums beside them."""

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self._folder, self._part_bytes, self._buffer = folder, part_bytes, bytearray()
        self.sums: list[str] = []

    def write(self, content: bytes) -> int:
        """Take bytes; each full part is written."""
        self._buffer += content
        while len(self._buffer) >= self._part_bytes:
            self._write_part(self._part_bytes)
        return len(content)

    def close(self) -> None:
        """Write what is left, then the checksums."""
        if self._buffer:
            self._write_part(len(self._buffer))
        (self._folder / SUMS_FILE).write_text("".join(self.sums))

    def _write_part(self, size: int) -> None:
        part = self._folder / f"kit.tar.{len(self.sums) + 1:03}"
        content = bytes(self._buffer[:size])
        del self._buffer[:size]
        with writing_to(self._folder, size, f"writing {part.name}"):
            part.write_bytes(content)
        self.sums.append(f"{hashlib.sha256(content).hexdigest()}  {part.name}\n")


def list_files(wheels: Path, names: Sequence[str], has_proof: bool) -> dict[str, Path]:
    """Return what a node needs: place on the node -> file.

    Args:
        wheels: Folder of wheels.
        names: Packed data sets.
        has_proof: Whether the GPU proof is to run there.

    Raises:
        UsageError: The code's own wheel is not among the wheels.
        DataError: A data set is not packed here.
    """
    files = {f"kit/{file.name}": file for file in sorted(wheels.glob("*.whl"))}
    if not any(file.name.startswith("darkroom-") for file in files.values()):
        raise UsageError(f"no darkroom-*.whl in {wheels}; make it: python -m hatchling build -t wheel -d {wheels}")
    cache_dir = load_settings().cache_dir
    for name in names:
        folder = open_dataset(name, cache_dir).path
        for file in (folder.parent / MANIFEST_FILE, *sorted(folder.iterdir())):
            files[f"home/cache/{file.relative_to(cache_dir).as_posix()}"] = file
    for name in PROOF if has_proof else ():
        brought = CHECKOUT / name
        for file in sorted(brought.rglob("*")) if brought.is_dir() else [brought]:
            if file.is_file() and "__pycache__" not in file.parts:
                files[f"proof/{file.relative_to(CHECKOUT).as_posix()}"] = file
    return files


def list_node_packages() -> list[str]:
    """Return the names of the packages of the extra `[node]`."""
    content = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    needed = [*content["dependencies"], *content["optional-dependencies"]["node"]]
    return sorted({re.split(r"[^\w.-]", one)[0].lower() for one in needed})


def is_wheel_of(place: str, name: str) -> bool:
    """Return whether a file is a wheel of a package."""
    return Path(place).name.lower().startswith(f"{re.sub('[-_.]+', '_', name)}-")


def main() -> None:
    """Print every file with its size and, with --out, write the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder of wheels")
    parser.add_argument("--data", action="append", default=[], metavar="NAME", help="packed data set; repeatable")
    parser.add_argument("--proof", action="store_true", help="bring the GPU proof and its tests as well")
    parser.add_argument("--out", type=Path, help="folder of the parts; without it they are only listed")
    parser.add_argument("--part-bytes", type=int, default=PART_BYTES, help="largest file (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.part_bytes < SMALLEST_PART_BYTES:
        sys.exit(f"node_kit: --part-bytes {arguments.part_bytes}: at least {SMALLEST_PART_BYTES} are allowed")
    try:
        files = list_files(arguments.wheels, arguments.data, arguments.proof)
    except DarkroomError as error:
        sys.exit(f"node_kit: {error}")
    total = sum(file.stat().st_size for file in files.values())
    for place, file in files.items():
        print(f"{format_size(file.stat().st_size):>10}  {place}")
    print(f"{format_size(total):>10}  together")
    if missing := [name for name in list_node_packages() if not any(is_wheel_of(place, name) for place in files)]:
        print(
            f"no wheel of {', '.join(missing)}: the node has to have them (docs/offline.md says how to download them)"
        )
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        if left := list(arguments.out.iterdir()):
            sys.exit(f"node_kit: {arguments.out} holds {left[0].name}; name an empty folder")
        parts = Parts(arguments.out, arguments.part_bytes)
        try:
            check_free_space(arguments.out, total, "writing the parts")
            with (
                show_progress("writing the parts", total, "B") as advance,
                tarfile.open(fileobj=parts, mode="w|") as archive,  # type: ignore[call-overload]
            ):
                for place, file in files.items():
                    archive.add(file, place)
                    advance(file.stat().st_size)
            parts.close()
        except DarkroomError as error:
            sys.exit(f"node_kit: {error}")
        print(f"{len(parts.sums)} parts and {SUMS_FILE} in {arguments.out}")


if __name__ == "__main__":
    main()
