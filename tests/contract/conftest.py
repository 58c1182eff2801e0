import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from serving.http.api import create_app
from serving.http.prediction_api import PredictionApi
from serving.models.model_set import ModelSet
from tests.unit.serving.tiny_bundle import release

ROOT = Path(__file__).parents[2]


class Service:
    """The real service in a process of its own, on a free loopback port."""

    def __init__(self, home, *arguments, module="serving.launcher", **variables):
        self.bundles_dir = home / "bundles"
        self.log = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "--port", "0", "--home", str(home), *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        ready = threading.Event()
        self.url = ""

        def read():
            for line in self.process.stdout:
                self.log.append(line)
                if line.startswith("Darkroom serves at "):
                    self.url = line.split()[3]
                    ready.set()
            ready.set()

        self.reader = threading.Thread(target=read, daemon=True)
        self.reader.start()
        assert ready.wait(60), self.log
        assert self.url, "".join(self.log)

    def stop(self, signum=signal.SIGTERM):
        """Send a signal and return the exit status."""
        self.process.send_signal(signum)
        status = self.process.wait(30)
        self.reader.join(10)
        self.process.stdout.close()
        return status


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    release(home / "bundles", "cifar10", "3")
    release(home / "bundles", "food", "1", softness=9000.0)
    running = Service(home)
    yield running
    running.stop()
    errors = [line for line in running.log if "Traceback" in line or "ERROR" in line]
    assert errors == [], "".join(running.log)


@pytest.fixture
def start_service():
    """Start services that a test stops, kills or breaks."""
    running = []

    def start(home, *arguments, **variables):
        running.append(Service(home, *arguments, **variables))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.stop(signal.SIGKILL)


@pytest.fixture
def client(service):
    with httpx.Client(base_url=service.url, timeout=90, trust_env=False) as session:
        yield session


@pytest.fixture
def make_app(tmp_path):
    """Make the routes of a released model, with limits of their own, in this process."""
    made = []

    def make(admission, max_images, options=None):
        release(tmp_path / "bundles")
        models = ModelSet(tmp_path / "bundles", threads=1)
        models.refresh()
        app = create_app(options)
        app.state.api = PredictionApi(models, admission, max_images=max_images)
        made.append(app)
        return app

    yield make
    for app in made:
        app.state.api.close()
