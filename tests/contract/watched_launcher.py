"""The service's launcher, which also writes down whatever the process reaches for beyond its own port.

    WATCH_FILE=events.txt python -m tests.contract.watched_launcher --port 0 --home HOME

Each line of the file is one of Python's audit events and its arguments; the first is the watch's own, the proof that
it works. What libraries do without Python is not seen; the service runs on asyncio's own loop here, because uvloop's
connections raise no events.
"""

import asyncio
import os
import sys

EVENTS = {
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.gethostbyaddr",
    "socket.getnameinfo",
    "socket.sendto",
    "socket.sendmsg",
    "socket.bind",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "pty.spawn",
    "urllib.Request",
    "http.client.connect",
    "ftplib.connect",
    "smtplib.connect",
    "webbrowser.open",
    "pickle.find_class",
}
SECRET_NAME = "never-open-this.png"


def watch(path: str) -> None:
    """Write every such event of this process to a file from now on."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(event: str, arguments: tuple[object, ...]) -> None:
        is_secret = event == "open" and (SECRET_NAME in str(arguments[0]) or "passwd" in str(arguments[0]))
        if event in EVENTS or is_secret:
            os.write(file, f"{event} {arguments!r}\n".encode("utf-8", "replace"))

    sys.addaudithook(write)
    sys.modules["uvloop"] = None  # type: ignore[assignment]
    asyncio.run(look_up())


async def look_up() -> None:
    """Do what must be seen, from an event loop."""
    await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 1)


if __name__ == "__main__":
    watch(os.environ["WATCH_FILE"])
    from serving.launcher import main

    sys.exit(main())
