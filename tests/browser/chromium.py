"""A real Chromium without a window, driven by its DevTools protocol."""

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import websockets.asyncio.client

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--remote-debugging-port=0",
)


class Page:
    """One page; every method waits until the browser has answered."""

    def __init__(self, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count(1)
        self.requested: list[str] = []
        connecting = websockets.asyncio.client.connect(address, max_size=None, proxy=None)
        self._socket = self._loop.run_until_complete(connecting)
        for domain in ("Page", "Runtime", "DOM", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters):
        """Send one command of the protocol and return its result."""
        return self._loop.run_until_complete(self._call(method, parameters))

    async def _call(self, method, parameters):
        number = next(self._numbers)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await asyncio.wait_for(self._socket.recv(), 30))
            if message.get("method") == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def open(self, url: str) -> None:
        """Load an address."""
        self.call("Page.navigate", url=url)

    def read(self, expression: str):
        """Return the value of a JavaScript expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def choose_files(self, selector: str, files: list[Path]) -> None:
        """Put files into an input, as a person's choice does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window, pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def save_screenshot(self, file: Path) -> None:
        """Write what is seen as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the connection."""
        self._loop.run_until_complete(self._socket.close())
        self._loop.close()


@contextmanager
def open_page():
    """Start a browser with an empty profile and return its page."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            line = next(line for line in process.stderr if "DevTools listening on" in line)
            port = line.split("127.0.0.1:")[1].split("/")[0]
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            targets = json.load(opener.open(f"http://127.0.0.1:{port}/json"))
            address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
            page = Page(address)
            yield page
            page.close()
        finally:
            process.terminate()
            process.wait(20)
            process.stderr.close()
