"""A server of S3 that a test starts and kills: moto's, in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

START_TIMEOUT_S = 60
BUCKET = "bucket"


class S3Server:
    """An empty bucket; `environment` are the variables with which clients find it."""

    def __init__(self, log):
        self._log = log
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{self._port}"
        self._process = None
        self.environment = {
            "AWS_ENDPOINT_URL": self._url,
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "something",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def run(self):
        """Start it and wait until it has a bucket."""
        command = [sys.executable, "-P", "-m", "moto.server", "--host", "127.0.0.1", "--port", str(self._port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._make_bucket():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline_s, "the server of S3 does not answer"
            time.sleep(0.1)

    def kill(self):
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _make_bucket(self):
        request = urllib.request.Request(f"{self._url}/{BUCKET}", method="PUT")
        try:
            with urllib.request.urlopen(request, timeout=5):
                return True
        except urllib.error.URLError:
            return False
