"""The whole stack in containers, from a copy of this checkout, with a project name and ports of its own."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = "darkroomtest"


def pytest_collection_modifyitems(items):
    if os.environ.get("CONTAINERS") != "1":
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="CONTAINERS=1 runs it, with a Docker engine"))


@dataclass
class Stack:
    """One checkout and its containers."""

    folder: Path

    @property
    def environment(self):
        return os.environ | {"COMPOSE_PROJECT_NAME": PROJECT, "DARKROOM_TAG": "test"}

    @property
    def settings(self):
        lines = (self.folder / "infra/.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    def make(self, *arguments, check=True):
        """Run make as a person does; returns what it printed."""
        done = subprocess.run(
            ["make", f"PYTHON={sys.executable}", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def url(self, name):
        return f"http://127.0.0.1:{self.settings[f'{name}_PORT']}"

    def containers(self):
        """{service: id} of what runs."""
        listed = docker("ps", "--filter", f"label=com.docker.compose.project={PROJECT}", "--format", LABELLED)
        return dict(line.split() for line in listed.splitlines())

    def destroy(self):
        """Remove every container, network and volume, also those that an earlier test left."""
        mine = ("--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}")
        for kind, listed in (("container", ("ls", "--all")), ("network", ("ls",)), ("volume", ("ls",))):
            if found := docker(kind, *listed, *mine).split():
                docker(kind, "rm", *(("--force",) if kind != "network" else ()), *found)


LABELLED = '{{.Label "com.docker.compose.service"}} {{.ID}}'


def docker(*arguments):
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """The stack of a fresh copy, started by `make up`."""
    folder = tmp_path_factory.mktemp("checkout") / "darkroom"
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    choose_ports(folder / "infra/env.example")
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (("init", "--quiet"), ("add", "--all"), (*author, "commit", "--quiet", "--message", "copy")):
        subprocess.run(["git", *command], cwd=folder, check=True)
    stack = Stack(folder)
    stack.destroy()
    printed = stack.make("up")
    assert "healthy after" in printed, printed[-2000:]
    yield stack
    stack.destroy()


def choose_ports(file):
    """Free ports instead of the example's."""
    lines = file.read_text().splitlines()
    names = [line.split("=")[0] for line in lines if "_PORT=" in line]
    with ExitStack() as held:
        taken = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        ports = {name: one.getsockname()[1] for name, one in zip(names, taken, strict=True)}
    lines = [f"{name}={ports[name]}" if (name := line.split("=")[0]) in ports else line for line in lines]
    file.write_text("\n".join(lines) + "\n")
