"""Starts, stops, backs up and restores the containers of compose.yaml: `make up`, `down`, `backup`, `restore`.

Python's standard library and Docker only, so that it runs on a machine where nothing else is installed.
"""

import argparse
import errno
import fcntl
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENV_FILE = HERE / ".env"
STOPPED_FILE = HERE / ".stopped"  # there while the stack is meant to be down
LOCK_FILE = HERE / ".lock"  # held while `up`, `down` or `restore` works, so that `watch` keeps out of it
PROJECT = os.environ.get("COMPOSE_PROJECT_NAME", "darkroom")
TAG = os.environ.get("DARKROOM_TAG", "latest")
IMAGES = ("darkroom-train", "darkroom-serve-cpu")
DATABASES = ("mlflow", "prefect")
# Packed images and downloads are not in a backup, only what they were: they are made again from their source.
VOLUMES = {"artifacts": (), "home": ("./cache", "./data"), "inbox": ()}
# Backups of earlier versions lack these.
LATER_VOLUMES = ("inbox",)
PICTURES_FILE = "pictures.json"
PRINT_MANIFESTS = (
    "for file in /volume/cache/*/manifest.json; do if [ -f $file ]; then tr -d '\\n' < $file; echo; fi; done"
)
LOOPBACK = "127.0.0.1"
HEALTHY_TIMEOUT_S = 300
WATCH_INTERVAL_S = 5
PAGES = {
    "prediction service": "SERVING_PORT",
    "MLflow": "MLFLOW_PORT",
    "Prefect": "PREFECT_PORT",
    "Prometheus": "PROMETHEUS_PORT",
    "Grafana": "GRAFANA_PORT",
}


class StackError(Exception):
    """What went wrong, in one line."""


def main() -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="infra/stack.py", description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="with compose.gpu.yaml")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start everything, wait until it is healthy, print the addresses")
    commands.add_parser("down", help="stop everything; volumes stay")
    run = commands.add_parser("exec", help="run a command in a container, e.g. exec worker darkroom data list")
    run.add_argument("service")
    run.add_argument("words", nargs=argparse.REMAINDER)
    commands.add_parser("watch", help="start again what is killed by hand, until Ctrl-C")
    commands.add_parser("logs", help="follow the logs").add_argument("services", nargs="*")
    for name, help_text in (
        ("backup", "write databases and files to a new folder"),
        ("restore", "into an empty stack"),
    ):
        commands.add_parser(name, help=help_text).add_argument("folder", type=Path)
    options = parser.parse_args()
    stack = Stack(options.gpu)
    try:
        match options.command:
            case "up":
                with _alone():
                    stack.up()
            case "down":
                with _alone():
                    stack.down()
            case "exec":
                return stack.execute(options.service, options.words)
            case "watch":
                stack.watch()
            case "logs":
                stack.compose("logs", "--follow", "--tail", "200", *options.services)
            case "backup":
                stack.back_up(options.folder.resolve())
            case "restore":
                with _alone():
                    stack.restore(options.folder.resolve())
    except KeyboardInterrupt:
        return 130
    except StackError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"stack: {' '.join(map(str, error.cmd[:6]))} … failed; its own lines say why", file=sys.stderr)
        return 1
    return 0


def write_env() -> dict[str, str]:
    """Return the settings of the env file; make it, or add what a newer version needs, with fresh secrets."""
    text = ENV_FILE.read_text(encoding="utf-8") if ENV_FILE.exists() else ""
    if text and not text.endswith("\n"):
        text += "\n"
    known = _parse(text)
    for line in (HERE / "env.example").read_text(encoding="utf-8").splitlines(keepends=True):
        if "=" in line and not line.startswith("#"):
            text += "" if line.split("=", 1)[0] in known else line.replace("generate", secrets.token_urlsafe(24))
        elif not known:
            text += line
    settings = _parse(text)
    if settings != known:
        scratch = ENV_FILE.with_suffix(".new")
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            stream.write(text)
        scratch.replace(ENV_FILE)
        print(f"secrets are in {ENV_FILE}")
    return settings


def _parse(text: str) -> dict[str, str]:
    lines = (line.strip() for line in text.splitlines())
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


class Stack:
    """The containers of one machine."""

    def __init__(self, has_gpu: bool) -> None:
        self._files = ["--file", str(HERE / "compose.yaml")]
        if has_gpu:
            self._files += ["--file", str(HERE / "compose.gpu.yaml")]
        self._command = _find_compose()
        self._profiles = ["--profile", "grafana"]

    def compose(self, *arguments: str) -> None:
        """Run Compose on the stack."""
        self._run(*arguments, stdout=None)

    def _run(self, *arguments: str, stdout: int | None = subprocess.PIPE) -> str:
        # Compose wants every setting also where none is used, as for `down`.
        settings = ENV_FILE if ENV_FILE.exists() else HERE / "env.example"
        command = [*self._command, "--project-name", PROJECT, "--env-file", str(settings), *self._files]
        command += [*self._profiles, *arguments]
        return subprocess.run(command, check=True, stdout=stdout, text=True).stdout or ""

    def up(self) -> None:
        """Start everything, wait until it is healthy, print the addresses."""
        if not ENV_FILE.exists() and _docker_succeeds("volume", "inspect", f"{PROJECT}_database"):
            raise StackError(
                f"{ENV_FILE} is gone, and new secrets would not open the database that is there; bring it back, from a "
                f"backup for instance, or remove the volume {PROJECT}_database with all that is in it"
            )
        settings = write_env()
        STOPPED_FILE.unlink(missing_ok=True)
        has_grafana = self._can_have(f"grafana/grafana:{settings['GRAFANA_TAG']}")
        if not has_grafana:
            self._profiles = []
        check_ports(settings, [port for page, port in PAGES.items() if page != "Grafana" or has_grafana])
        start_s = time.monotonic()
        self.compose("up", "--detach", "--remove-orphans")
        self._wait_until_healthy()
        print(f"healthy after {time.monotonic() - start_s:.0f} s")
        for page, port in PAGES.items():
            if page != "Grafana" or has_grafana:
                # Prometheus asks for no password and is published on the loopback address only.
                bind = LOOPBACK if page == "Prometheus" else settings["DARKROOM_BIND"]
                print(f"  {page:18} http://{_reachable(bind)}:{settings[port]}")
        print(f"users and passwords: {ENV_FILE}")

    def down(self) -> None:
        """Stop and remove the containers; volumes stay."""
        STOPPED_FILE.touch()
        self.compose("down", "--remove-orphans", "--timeout", "60")

    def _can_have(self, image: str) -> bool:
        """Whether an image that only shows things is here or can be pulled; the stack works without it."""
        if _docker_succeeds("image", "inspect", image) or _docker_succeeds("pull", "--quiet", image):
            return True
        print(f"{image} cannot be pulled: the stack starts without dashboards; `make up` later tries again")
        return False

    def _wait_until_healthy(self) -> None:
        deadline_s = time.monotonic() + HEALTHY_TIMEOUT_S
        waited_for: dict[str, str] = {}
        while True:
            states = self._read_states()
            failed = [name for name, state in states.items() if state.startswith("exited") and state != "exited 0"]
            if failed:
                raise StackError(f"{', '.join(failed)} ended; see make logs ARGS={failed[0]}")
            waiting = {name: state for name, state in states.items() if state not in ("healthy", "running", "exited 0")}
            if not waiting:
                return
            if waiting != waited_for:
                print("waiting for " + ", ".join(f"{name} ({state})" for name, state in waiting.items()), flush=True)
                waited_for = waiting
            if time.monotonic() > deadline_s:
                raise StackError(f"{', '.join(waiting)} not healthy after {HEALTHY_TIMEOUT_S} s; see `make logs`")
            time.sleep(1)

    def _read_states(self) -> dict[str, str]:
        """Return each service's health, or its state where it has no check."""
        states = {}
        for container in self._inspect():
            state = container["State"]
            health = state.get("Health", {}).get("Status")
            ended = f"exited {state['ExitCode']}" if state["Status"] == "exited" else None
            states[_read_service(container)] = ended or health or state["Status"]
        return dict(sorted(states.items()))

    def _inspect(self) -> list[dict[str, Any]]:
        """Return what Docker knows of each container of the stack."""
        names = self._run("ps", "--quiet", "--all").split()
        if not names:
            raise StackError("no container was started; `make up` first")
        containers: list[dict[str, Any]] = json.loads(_docker("inspect", *names))
        return containers

    def watch(self) -> None:
        """Start containers again that ended although they should run.

        Docker does that itself unless somebody killed or stopped them by hand.
        """
        while True:
            try:
                with _alone(is_patient=False):
                    self._start_ended()
            except BlockingIOError:
                pass  # `up` stops containers to make them anew
            time.sleep(WATCH_INTERVAL_S)

    def _start_ended(self) -> None:
        for container in [] if STOPPED_FILE.exists() else self._inspect():
            is_kept = container["HostConfig"]["RestartPolicy"]["Name"] == "always"
            if is_kept and container["State"]["Status"] == "exited" and _docker_succeeds("start", container["Id"]):
                print(f"{_read_service(container)} had ended, started again", flush=True)

    def execute(self, service: str, words: list[str]) -> int:
        """Run a command in a container; returns its exit status."""
        container = _find_running(service)
        return subprocess.run(["docker", "exec", "--interactive", container, *words], check=False).returncode

    def back_up(self, folder: Path) -> None:
        """Write databases, files and secrets to a new folder; the stack goes on meanwhile.

        Files are copied after the databases that name them, so that none is missing.
        """
        scratch = folder.with_name(folder.name + ".part")
        if not ENV_FILE.exists():
            raise StackError("there is no stack here: infra/.env is missing")
        _find_running("postgres")
        shutil.rmtree(scratch, ignore_errors=True)
        os.umask(0o077)  # it holds secrets
        try:
            if folder.exists():
                raise StackError(f"{folder} is there already; give a folder that is not")
            scratch.mkdir(parents=True)
            self._write_backup(scratch)
            scratch.rename(folder)
        except OSError as error:
            raise StackError(f"{folder} cannot be written: {error.strerror}; give a folder that can be") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        print(f"backup in {folder}; it holds the secrets too: keep it as safe as infra/.env")

    def _write_backup(self, scratch: Path) -> None:
        for database in DATABASES:
            with (scratch / f"{database}.dump").open("wb") as stream:
                self._exec("postgres", "pg_dump", "--username=postgres", "--format=custom", database, stdout=stream)
            print(f"database {database}", flush=True)
        for volume, left_out in VOLUMES.items():
            with (scratch / f"{volume}.tar").open("wb") as stream:
                options = [f"--exclude={path}" for path in left_out]
                # And 1: a checkpoint changed while it was read; its run writes it anew with the next epoch.
                options += ["--warning=no-file-changed", "--warning=no-file-removed"]
                command = ["tar", "-C", "/volume", *options, "-cf", "-", "."]
                _in_volume(volume, "ro", command, allowed=(0, 1), stdout=stream)
            print(f"files of {volume}", flush=True)
        manifests = _in_volume("home", "ro", ["sh", "-c", PRINT_MANIFESTS], stdout=subprocess.PIPE)
        (scratch / PICTURES_FILE).write_text(json.dumps(read_images(manifests), indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(ENV_FILE, scratch / "env")
        (scratch / "written").write_text(datetime.now(UTC).isoformat(timespec="seconds") + "\n", encoding="utf-8")

    def restore(self, folder: Path) -> None:
        """Bring a backup back into a stack that has no volumes yet, with the backup's secrets, and start it."""
        if not (folder / "written").is_file():
            raise StackError(f"{folder} is not a whole backup")
        lost = [
            volume for volume in VOLUMES if volume not in LATER_VOLUMES and not (folder / f"{volume}.tar").is_file()
        ]
        if lost:
            raise StackError(
                f"{folder} lacks {', '.join(f'{volume}.tar' for volume in lost)}; restore from another backup, or "
                "bring the file back"
            )
        kept = [f"{PROJECT}_{volume}" for volume in ("database", *VOLUMES)]
        there = [volume for volume in kept if _docker_succeeds("volume", "inspect", volume)]
        if there:
            raise StackError(
                f"volumes {', '.join(there)} are there; a backup goes into an empty stack: `make down`, then "
                f"`docker volume rm {' '.join(there)}`, which destroys what is in them"
            )
        missing = [image for image in IMAGES if not _docker_succeeds("image", "inspect", f"{image}:{TAG}")]
        if missing:
            raise StackError(f"there is no image {', '.join(missing)} with tag {TAG}; run `make images` first")
        if ENV_FILE.exists():
            ENV_FILE.rename(ENV_FILE.with_suffix(".before-restore"))
        shutil.copyfile(folder / "env", ENV_FILE)
        ENV_FILE.chmod(0o600)
        write_env()
        for volume in VOLUMES:
            labels = [
                f"--label=com.docker.compose.{key}={value}" for key, value in (("project", PROJECT), ("volume", volume))
            ]
            _docker("volume", "create", *labels, f"{PROJECT}_{volume}")
            if not (folder / f"{volume}.tar").exists():
                continue  # a backup of an earlier version, which had no such volume
            with (folder / f"{volume}.tar").open("rb") as stream:
                # As root, so that every file belongs to whom it did.
                _in_volume(volume, "rw", ["tar", "-C", "/volume", "-xpf", "-"], user="0:0", stdin=stream)
            print(f"files of {volume}", flush=True)
        self.compose("up", "--detach", "postgres")
        self._wait_for_postgres()
        for database in DATABASES:
            with (folder / f"{database}.dump").open("rb") as stream:
                self._exec(
                    "postgres",
                    "pg_restore",
                    "--username=postgres",
                    "--exit-on-error",
                    f"--dbname={database}",
                    stdin=stream,
                )
            print(f"database {database}", flush=True)
        # Who held a device when the backup was written does not hold it here.
        freed = "UPDATE concurrency_limit_v2 SET active_slots = 0"
        self._exec("postgres", "psql", "--quiet", "--username=postgres", "--dbname=prefect", "--command", freed)
        images = folder / PICTURES_FILE
        packed = json.loads(images.read_text(encoding="utf-8")) if images.exists() else []
        try:
            self.up()
            for one in packed:
                if one["name"] == "shapes":
                    self._exec("worker", "darkroom", "data", "add", "shapes", f"--image-size={one['image_size']}")
        finally:
            print(describe_images(packed), end="", flush=True)

    def _wait_for_postgres(self) -> None:
        deadline_s = time.monotonic() + HEALTHY_TIMEOUT_S
        while self._read_states().get("postgres") != "healthy":
            if time.monotonic() > deadline_s:
                raise StackError("PostgreSQL does not start; see `make logs ARGS=postgres`")
            time.sleep(1)

    def _exec(self, service: str, *command: str, **streams: object) -> None:
        command = ("docker", "exec", "--interactive", _find_running(service), *command)
        subprocess.run(command, check=True, **streams)  # type: ignore[call-overload]


@contextmanager
def _alone(is_patient: bool = True) -> Iterator[None]:
    """Wait until no other `stack.py` starts or stops containers here, then keep others out; BlockingIOError if not."""
    with LOCK_FILE.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX if is_patient else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def check_ports(settings: dict[str, str], names: list[str]) -> None:
    """Refuse ports that somebody else listens on, before anything is started.

    Raises:
        StackError: One is taken, is given twice, or is no port.
    """
    ours = _list_published()
    seen: dict[str, str] = {}
    for name in names:
        port, bind = settings[name], settings["DARKROOM_BIND"]
        if not (port.isdecimal() and 0 < int(port) < 65536):
            raise StackError(f"{name}={port} is no port; give 1 to 65535 in {ENV_FILE}")
        if port in seen:
            raise StackError(f"{name} and {seen[port]} are both {port}; change one in {ENV_FILE}")
        seen[port] = name
        if port in ours:
            continue
        try:
            socket.create_server((bind, int(port))).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                why = "is taken by another program"
                raise StackError(f"port {port} {why}; change {name} in {ENV_FILE}, then `make up`") from error


def _list_published() -> set[str]:
    """Return the ports that this stack's containers hold now."""
    running = _docker("ps", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
    containers = json.loads(_docker("inspect", *running)) if running else []
    bindings = [ports or [] for one in containers for ports in one["NetworkSettings"]["Ports"].values()]
    return {binding["HostPort"] for published in bindings for binding in published}


def _find_running(service: str) -> str:
    """Return the container of a service.

    Raises:
        StackError: It does not run.
    """
    labels = {"com.docker.compose.project": PROJECT, "com.docker.compose.service": service}
    filters = [f"--filter=label={key}={value}" for key, value in labels.items()]
    found = _docker("ps", "--quiet", *filters).split()
    if not found:
        raise StackError(f"{service} is not running; `make up` first")
    return found[0]


def read_images(manifests: str) -> list[dict[str, Any]]:
    """Return what the packed data sets were, from their manifests, one in a line; without damaged ones."""
    found = []
    for line in manifests.splitlines():
        try:
            manifest = json.loads(line)
            one = {key: manifest[key] for key in ("name", "image_size", "source", "checksum")}
            found.append(one | {"source_paths": manifest.get("source_paths", [])})
        except (ValueError, KeyError, TypeError):
            print("a damaged data set is not in the list of images", flush=True)
    return found


def describe_images(packed: list[dict[str, Any]]) -> str:
    """Return the lines that say what has to be added again after a restore; `shapes` is drawn by `restore`."""
    # One that feedback was added to comes after what it was added to.
    missing = sorted((one for one in packed if one["name"] != "shapes"), key=lambda one: str(one["name"]))
    if not missing:
        return ""
    lines = ["packed images are not in a backup; add them again, then start what has failed without them:"]
    for one in missing:
        command = f"python3 infra/stack.py exec worker darkroom data add {one['name']} --image-size {one['image_size']}"
        paths = " ".join(f"--from {shlex.quote(path)}" for path in one.get("source_paths", []))
        lines.append(f"  {command} {paths or '--from …'}   # was {one['source']}")
    return "\n".join(lines) + "\n"


def _in_volume(
    volume: str,
    mode: str,
    command: list[str],
    user: str = "1000:1000",
    allowed: tuple[int, ...] = (0,),
    **streams: object,
) -> str:
    """Run a command of the train image with a volume at /volume; returns what it printed into a pipe."""
    mount = f"{PROJECT}_{volume}:/volume:{mode}"
    options = [
        "run",
        "--rm",
        "--interactive",
        "--network=none",
        "--user",
        user,
        "--volume",
        mount,
        f"darkroom-train:{TAG}",
    ]
    done = subprocess.run(["docker", *options, *command], check=False, text=True, **streams)  # type: ignore[call-overload]
    if done.returncode not in allowed:
        raise StackError(
            f"{command[0]} failed on the volume {volume}, exit status {done.returncode}; its lines say why"
        )
    return done.stdout or ""


def _read_service(container: dict[str, Any]) -> str:
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def _find_compose() -> list[str]:
    if _docker_succeeds("compose", "version"):
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise SystemExit("stack: neither `docker compose` nor docker-compose is installed")


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout


def _docker_succeeds(*arguments: str) -> bool:
    return subprocess.run(["docker", *arguments], check=False, capture_output=True).returncode == 0


def _reachable(bind: str) -> str:
    return LOOPBACK if bind == "0.0.0.0" else bind  # noqa: S104


if __name__ == "__main__":
    sys.exit(main())
