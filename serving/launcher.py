"""The command that serves: its options, the address it listens on, what BentoML is told before it is imported.

    python -m serving.launcher --port 3000          the same as `darkroom serve --port 3000`

One process answers, so that nothing is left holding the port when it is killed; its helpers decode images and end with
it. With --supervise a second one starts it again. Imports that take time are inside the
functions: the `darkroom` command has this one among its own.
"""

import contextlib
import fcntl
import ipaddress
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from serving.errors import StartError
from serving.options import DEFAULT_KEEP_ALIVE_S, ServiceOptions, is_root_path
from serving.regular_files import open_regular
from serving.supervisor import has_supervisor, supervise, take_listener

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 3000
_SCRATCH_PREFIX, _LOCK_FILE = "darkroom-serving-", "lock"


def _check_address(_: click.Context, __: click.Parameter, address: str | None) -> str | None:
    if address is not None and not re.fullmatch(r"https?://[^\s/:@]+(:\d{1,5})?(/\S*)?", address):
        raise click.BadParameter(f"{address!r} is no address; give one such as http://127.0.0.1:5000")
    return address


def _check_origins(_: click.Context, __: click.Parameter, origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if not re.fullmatch(r"(?i)https?://[^/\s@]+", origin):
            raise click.BadParameter(f"{origin!r} is no origin; give scheme and host only, as https://example.org")
    return origins


def _check_hosts(_: click.Context, __: click.Parameter, hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*\.?", host):
            raise click.BadParameter(
                f"{host!r} is no host name; give it without scheme and port, as photos.example.org"
            )
    return hosts


def _check_root_path(_: click.Context, __: click.Parameter, path: str) -> str:
    path = path.rstrip("/")
    if path and not is_root_path(path):
        raise click.BadParameter(f"{path!r} is no prefix of addresses; give one such as /ml/darkroom")
    return path


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True)
@click.option("--host", default=DEFAULT_HOST, show_default=True)
@click.option("--home", type=click.Path(path_type=Path), help="DARKROOM_HOME; ./.darkroom if not given.")
@click.option("--wait", "is_patient", is_flag=True, help="Start without a model and wait for the first release.")
@click.option("--precision", help="fp32, fp16 or int8; the fastest of each model here if not given.")
@click.option("--require-cuda", is_flag=True, help="Refuse to answer on the CPU.")
@click.option(
    "--registry", metavar="URL", callback=_check_address, help="MLflow server whose champions are fetched and followed."
)
@click.option(
    "--shadow-share",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of the requests that a challenger gets as shadow traffic.",
)
@click.option(
    "--api-keys",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with one key of 16 or more characters per line; each request must bring one.",
)
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    callback=_check_origins,
    help="Web page that may call, as https://example.org; repeatable.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    callback=_check_hosts,
    help="Name under which browsers reach the service, as photos.example.org; repeatable. Addresses, localhost and "
    "names without a dot need none.",
)
@click.option(
    "--root-path",
    default="",
    metavar="PREFIX",
    callback=_check_root_path,
    help="Prefix that a proxy strips, as /ml/darkroom; X-Forwarded-Prefix of the proxy if not given.",
)
@click.option(
    "--keep-alive",
    "keep_alive_s",
    type=click.IntRange(1, 3600),
    default=DEFAULT_KEEP_ALIVE_S,
    show_default=True,
    metavar="SECONDS",
    help="How long an idle connection stays open; longer than the proxy in front keeps its own.",
)
@click.option(
    "--log-requests",
    "log_share",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="SHARE",
    help="Write this share of the answers, 0 to 1, to requests/ in DARKROOM_INBOX, or in DARKROOM_HOME if not set.",
)
@click.option("--keep-pictures", is_flag=True, help="Keep the images of these requests too.")
@click.option("--access-log", is_flag=True, help="Write one JSON object for each request to stdout.")
@click.option("--feedback", is_flag=True, help="Accept true labels at /v1/feedback, into feedback/ beside requests/.")
@click.option(
    "--review",
    "shows_review",
    is_flag=True,
    help="Let people give true labels to the kept images of which a model was least sure; shows them images that "
    "others sent.",
)
@click.option(
    "--examples",
    "gives_examples",
    is_flag=True,
    help="Answer a wrong form with the curl, Python and JavaScript lines that work.",
)
@click.option(
    "--uncommon-formats",
    is_flag=True,
    help="Decode PPM, AVIF, run-length BMP and TIFF of uncommon compressions too; they are slow to decode.",
)
@click.option(
    "--supervise", "is_supervised", is_flag=True, help="Start the service again when it is dead, stopped or hung."
)
def serve(
    port: int,
    host: str,
    home: Path | None,
    is_patient: bool,
    precision: str | None,
    require_cuda: bool,
    registry: str | None,
    shadow_share: float,
    api_keys: Path | None,
    allow_origin: tuple[str, ...],
    allow_host: tuple[str, ...],
    root_path: str,
    keep_alive_s: int,
    log_share: float,
    keep_pictures: bool,
    access_log: bool,
    feedback: bool,
    shows_review: bool,
    gives_examples: bool,
    uncommon_formats: bool,
    is_supervised: bool,
) -> None:
    """Answer predictions over HTTP with the released models."""
    if keep_pictures and not log_share:
        raise click.UsageError("--keep-pictures keeps those of logged requests: give --log-requests SHARE too")
    if shows_review and not (keep_pictures and feedback):
        raise click.UsageError(
            "--review shows images that are kept and stores labels: give --log-requests SHARE, --keep-pictures and "
            "--feedback too"
        )
    if shows_review and api_keys is None:
        reached = "" if _is_loopback(host) else host
        if allow_origin or allow_host or root_path:
            reached = (*allow_origin, *allow_host, root_path)[0]
        if reached:
            raise click.UsageError(
                f"--review shows images that others sent to everybody who reaches {reached}: give --api-keys FILE too, "
                f"or serve on {DEFAULT_HOST} without --allow-origin, --allow-host and --root-path"
            )
    if is_supervised and not has_supervisor():
        with _listen(host, port) as listener:
            sys.exit(supervise(listener))
    options = ServiceOptions(
        precision=precision,
        requires_cuda=require_cuda,
        registry=registry,
        shadow_share=shadow_share,
        api_keys_file=api_keys,
        allowed_origins=allow_origin,
        allowed_hosts=allow_host,
        root_path=root_path,
        keep_alive_s=keep_alive_s,
        log_share=log_share,
        keeps_images=keep_pictures,
        logs_access=access_log,
        takes_feedback=feedback,
        shows_review=shows_review,
        gives_examples=gives_examples,
        allows_uncommon_formats=uncommon_formats,
    )
    run_server(port, host, home, is_patient, options)


def run_server(
    port: int = DEFAULT_PORT,
    host: str = DEFAULT_HOST,
    home: Path | None = None,
    is_patient: bool = False,
    options: ServiceOptions | None = None,
) -> None:
    """Serve the released models until Ctrl-C or SIGTERM; requests that have started are finished.

    Args:
        port: TCP port; 0 takes a free one.
        host: Address to listen on; `0.0.0.0` for every one.
        home: DARKROOM_HOME; the environment's, or `./.darkroom`, when None.
        is_patient: True to start without a model and answer 503 until the first release.
        options: Options of the service.

    Raises:
        StartError: Nothing is released or can be loaded and it is not patient, or the address cannot be listened on.
    """
    from serving.bundle.store import list_released
    from serving.models.model_set import find_bundles_dir

    bundles_dir = find_bundles_dir(home)
    options = options or ServiceOptions()
    if options.registry and any(bundles_dir.glob("*/ledger.jsonl")):
        raise StartError(
            f"{bundles_dir} has releases of its own, which a registry's would replace; leave --registry out, "
            "or give --home of a folder for this service alone"
        )
    if not (is_patient or options.registry or list_released(bundles_dir)):
        raise StartError(f"no model is released in {bundles_dir}; run `darkroom release RECIPE --as cifar10`")
    with take_listener() or _listen(host, port) as listener, _make_scratch() as scratch, _hold(Path(scratch)):
        os.environ["DARKROOM_HOME"] = str(bundles_dir.parent)
        options.publish()
        _keep_bentoml_here(Path(scratch))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            print("serve: loading BentoML and ONNX Runtime", flush=True)
            from serving.server import run_service  # only now: it imports BentoML

            run_service(listener, is_patient)
        except KeyboardInterrupt:
            print("stopped")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        # create_server words its own text around the system's; a name that does not resolve has a negative number.
        number = (isinstance(error, OSError) and error.errno) or 0
        reason = os.strerror(number) if number > 0 else str(error)
        raise StartError(f"cannot listen on {host}:{port}: {reason}; choose another with --port or --host") from error
    # What it accepts inherits this. asyncio sets it only where it sees TCP, which create_server's sockets do not say:
    # without it the second half of an answer waits up to 40 ms until the client has acknowledged the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _make_scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for what BentoML writes when it is imported, removed at the end.

    Raises:
        StartError: No folder for temporary files can be written.
    """
    try:
        _remove_left_scratch()
        return tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX, ignore_cleanup_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise StartError(
            f"no folder for temporary files can be written ({reason}); name one with TMPDIR, or mount a volume at /tmp"
        ) from error


def _remove_left_scratch() -> None:
    """Remove the folders of services that were killed: nobody holds the lock in them any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError), open_regular(folder / _LOCK_FILE) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _hold(scratch: Path) -> Iterator[None]:
    """Keep later starts from removing the folder while this process lives."""
    with (scratch / "unlocked").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (scratch / "unlocked").rename(scratch / _LOCK_FILE)
        yield


def _keep_bentoml_here(scratch: Path) -> None:
    """Set what BentoML reads when it is imported: it would write to the user's home and report its use."""
    os.environ["BENTOML_HOME"] = str(scratch / "bentoml")
    tempfile.tempdir = str(scratch)
    # One process counts in memory; files in a folder that is full or cleaned would take it down.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"


def main() -> int:
    """Run `python -m serving.launcher`; returns the exit status."""
    try:
        serve(prog_name="python -m serving.launcher", standalone_mode=False)
    except StartError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
