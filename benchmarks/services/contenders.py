"""Who is measured: how each service is started, when it is ready, and what it is sent."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

OURS = ("ours-fp32", "ours-int8")
NAMES = (*OURS, "fastapi", "litserve", "mlflow")
MAX_START_S = 120.0
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Body:
    """What is posted.

    Attributes:
        data: The bytes.
        content_type: Its header.
    """

    data: bytes
    content_type: str


@dataclass(frozen=True)
class Contender:
    """A service of the same model.

    Attributes:
        title: Its name in tables.
        command: What starts it; `{port}` stands for its port.
        path: Path of predictions.
        ready_path: Answers 200 as soon as it can predict.
        body: A request with one image.
        environment: Variables that it has besides ours.
    """

    title: str
    command: tuple[str, ...]
    path: str
    ready_path: str
    body: Body
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Service:
    """A contender that runs.

    Attributes:
        contender: What was started.
        process: The first of its processes, and the leader of their group.
        address: Address of predictions.
        ready_address: Where it says whether it can.
        start_s: Seconds from the start of the process to the first 200 there.
    """

    contender: Contender
    process: "subprocess.Popen[bytes]"
    address: str
    ready_address: str
    start_s: float

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let a paused service run for the block and pause it again, so that it takes nothing from the others."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Stop every process of the service until it is awake again."""
        self._signal(signal.SIGSTOP)

    def end(self) -> None:
        """End every process of the service."""
        self._signal(signal.SIGCONT)
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def describe_contenders(
    names: list[str], home: Path, bundle: Path, image: bytes, python: str, scratch: Path
) -> dict[str, Contender]:
    """Return the chosen contenders by name; what they need beforehand is written.

    Args:
        names: Of `NAMES`.
        home: DARKROOM_HOME with the released model.
        bundle: Folder of that model's champion.
        image: An encoded image.
        python: Interpreter of the environment that our service and MLflow are installed in.
        scratch: An existing folder for files.
    """
    model, raw, text = bundle / "model.onnx", Body(image, "application/octet-stream"), base64.b64encode(image)
    contenders = {}
    for name in names:
        if name in OURS:
            precision = name.removeprefix("ours-")
            launch = ("-m", "serving.launcher", "--home", str(home), "--port", "{port}", "--precision", precision)
            path = f"/v1/predict?model={bundle.parent.name}"
            contenders[name] = Contender(f"ours, {precision}", (python, *launch), path, "/readyz", raw)
        elif name == "fastapi":
            command = (sys.executable, "-m", "benchmarks.peers.fastapi_onnxruntime", str(model), "{port}")
            contenders[name] = Contender("FastAPI + onnxruntime, fp32", command, "/predict", "/openapi.json", raw)
        elif name == "litserve":
            command = (sys.executable, "-m", "benchmarks.peers.litserve_onnxruntime", str(model), "{port}")
            body = Body(json.dumps({"image": text.decode()}).encode(), "application/json")
            contenders[name] = Contender("LitServe + onnxruntime, fp32", command, "/predict", "/health", body)
        else:
            contenders[name] = _describe_mlflow(model, text.decode(), python, scratch)
    return contenders


def _describe_mlflow(model: Path, image: str, python: str, scratch: Path) -> Contender:
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": (scratch / "mlruns").as_uri(),
        # MLflow starts the `uvicorn` that it finds there.
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
        "UVICORN_ACCESS_LOG": "false",
    }
    folder = scratch / "mlflow-model"
    save = (python, "-m", "benchmarks.peers.mlflow_pyfunc", str(model), str(folder))
    subprocess.run(save, cwd=scratch, env=_build_environment(environment), check=True, capture_output=True)
    serve = ("-m", "mlflow", "models", "serve", "--env-manager", "local", "--model-uri", str(folder))
    return Contender(
        "mlflow models serve, fp32",
        (python, *serve, "--host", "127.0.0.1", "--port", "{port}"),
        "/invocations",
        "/ping",
        Body(json.dumps({"inputs": [image]}).encode(), "application/json"),
        environment,
    )


@contextmanager
def start(contender: Contender, scratch: Path) -> Iterator[Service]:
    """Start a contender, wait until it is ready, and end it after the block.

    Raises:
        RuntimeError: It ended, or was not ready after `MAX_START_S`.
    """
    port = _find_port()
    log = scratch / f"{port}.log"
    address = f"http://127.0.0.1:{port}"
    command = [word.format(port=port) for word in contender.command]
    start_s = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=scratch,
            env=_build_environment(contender.environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    service = Service(contender, process, address + contender.path, address + contender.ready_path, 0.0)
    try:
        while not is_ready(service):
            if process.poll() is not None or time.perf_counter() - start_s > MAX_START_S:
                raise RuntimeError(f"{contender.title} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        yield replace(service, start_s=time.perf_counter() - start_s)
    finally:
        service.end()


def is_ready(service: Service) -> bool:
    """Return whether the service says that it can predict."""
    try:
        with urllib.request.urlopen(service.ready_address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _build_environment(added: dict[str, str]) -> dict[str, str]:
    paths = (str(_ROOT), os.environ.get("PYTHONPATH", ""))
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | added


def _find_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
