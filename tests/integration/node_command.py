"""The `darkroom` command with nothing importable but the project's `[node]` extra and what that requires.

python -P -m tests.integration.node_command train RECIPE --offline
"""

import sys
import tomllib
from collections.abc import Iterable
from importlib.machinery import PathFinder
from importlib.metadata import DistributionFinder, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def list_allowed() -> set[str]:
    """Names of the distributions that `pip install darkroom[node]` would bring, the project itself left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed: set[str] = set()
    _add(project["dependencies"] + project["optional-dependencies"]["node"], frozenset(), allowed)
    return allowed


def _add(requirements: Iterable[str], extras: frozenset[str], allowed: set[str]) -> None:
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})
        name = canonicalize_name(requirement.name)
        if wanted and name not in allowed:
            allowed.add(name)
            _add(distribution(name).requires or (), frozenset(requirement.extras), allowed)


ALLOWED = list_allowed() | {"darkroom"}
HIDDEN = {
    module for module, owners in packages_distributions().items() if not ALLOWED & set(map(canonicalize_name, owners))
}


class NodeFinder(PathFinder):
    """Finds what would be installed, and nothing else: modules and their metadata."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in HIDDEN else super().find_spec(fullname, path, target)

    @staticmethod
    def find_distributions(context=None):
        found = PathFinder.find_distributions(context or DistributionFinder.Context())
        return (one for one in found if canonicalize_name(one.name) in ALLOWED)


def hide() -> None:
    """Let this process import nothing else from now on."""
    assert {"mlflow", "prefect", "httpx", "tensorboard", "onnxruntime", "pytest", "psutil"} <= HIDDEN
    for name in [name for name in sys.modules if name.partition(".")[0] in HIDDEN]:
        del sys.modules[name]
    sys.meta_path[sys.meta_path.index(PathFinder)] = NodeFinder


def main() -> None:
    hide()
    from flows.cli import main

    main()


if __name__ == "__main__":
    main()
