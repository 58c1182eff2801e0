"""Worker processes that decode images: started, watched, killed when they take too long, and replaced.

Shape suffixes: H = height, W = width, C = colour channels.
"""

import contextlib
import logging
import os
import queue
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.decoding.worker import (
    GRANT,
    HELLO,
    IMAGE,
    IMAGE_FILE,
    JOB,
    PING,
    PIXELS,
    PIXELS_DENIED,
    PONG,
    REFUSAL,
    allow_cpu_s,
    receive_message,
    send_message,
)
from serving.errors import NotAnImageError, OverloadedError, ServingError, TooLargeError

WATCH_INTERVAL_S = 2.0
# A worker that owes an answer and used no CPU time for so long is stopped or hung. One that computes has longer, on a
# busy machine: its CPU time is bounded (serving/decoding/worker.py).
IDLE_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 45.0
# Images are decoded at a lower priority than the service has, so that small ones are answered meanwhile.
NICENESS = 12
_RETRY_AFTER_S = 2
_MAX_ANSWER_BYTES = 4_000
_ERRORS = {error.__name__: error for error in (NotAnImageError, TooLargeError, OverloadedError)}
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
_ROOT = Path(__file__).parents[2]

logger = logging.getLogger(__name__)


class DecoderPool:
    """Decoding processes, safe to use from as many threads; a process ends with the thread that started it.

    Attributes:
        size: Number of processes.
    """

    def __init__(self, size: int, allows_uncommon: bool = False, niceness: int = NICENESS) -> None:
        """Start the processes; they are not waited for.

        Args:
            size: Number of processes.
            allows_uncommon: True to decode uncommon formats too.
            niceness: Added to the niceness of this process.
        """
        self.size = size
        self._allows_uncommon = allows_uncommon
        self._workers = [_Worker(niceness) for _ in range(size)]
        self._idle: queue.Queue[_Worker] = queue.Queue()
        self._is_closed = threading.Event()
        self._is_sandbox_told = False
        for worker in self._workers:
            # A failed start is told, and tried again, by whoever uses the worker next.
            with contextlib.suppress(OSError):
                worker.start()
            self._idle.put(worker)
        self._watch = threading.Thread(target=self._watch_idle, name="watch-decoders", daemon=True)
        self._watch.start()

    @property
    def pids(self) -> list[int]:
        """Process ids of the running workers."""
        return [process.pid for worker in self._workers if (process := worker.process) is not None]

    def count_silent_s(self) -> float:
        """Return the time since any worker last sent a message, whatever it says, seconds."""
        return time.monotonic() - max(worker.heard_s for worker in self._workers)

    def decode(
        self, data: bytes, image_size: int, resize_size: int, take_pixels: Callable[[int], None]
    ) -> npt.NDArray[np.uint8]:
        """Decode one image in a worker, as `serving.bundle.preprocess.decode_picture` does.

        Args:
            data: The encoded file.
            image_size: Height and width of the result, pixels.
            resize_size: Short side before the crop, pixels.
            take_pixels: Told how many pixels the image has before they are decoded; it may wait, or refuse by raising.

        Returns:
            uint8 [image_size, image_size, 3].

        Raises:
            NotAnImageError: The bytes are empty, truncated or not an image, or of a format that is not accepted.
            TooLargeError: Too many pixels or parts, or more CPU time than its pixels allow.
            OverloadedError: The worker was killed, hung, or lacked memory: the image is not to blame.
        """
        worker = self._idle.get()
        try:
            self._greet(worker)
            job = JOB.pack(image_size, resize_size, self._allows_uncommon) + data
            return worker.decode(job, image_size, take_pixels)
        except (OSError, EOFError) as error:
            raise worker.end(error) from error
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Kill the processes; what they were decoding is answered as overload."""
        self._is_closed.set()
        for worker in self._workers:
            worker.kill()
        self._watch.join(IDLE_TIMEOUT_S)

    def _greet(self, worker: "_Worker") -> None:
        if self._is_closed.is_set():
            raise OverloadedError("the service is stopping; try again", _RETRY_AFTER_S)
        problem = worker.greet()
        if problem and not self._is_sandbox_told:
            self._is_sandbox_told = True
            logger.warning("images are decoded without a part of the sandbox: %s", problem)

    def _watch_idle(self) -> None:
        """Ask idle workers, one after the other, for a sign of life; those that give none are replaced."""
        while not self._is_closed.wait(WATCH_INTERVAL_S):
            for _ in self._workers:
                try:
                    worker = self._idle.get_nowait()
                except queue.Empty:
                    break
                try:
                    self._greet(worker)
                    worker.ping()
                except (OSError, EOFError) as error:
                    logger.warning("a decoding process is replaced: %s", worker.end(error))
                except ServingError:
                    pass
                finally:
                    self._idle.put(worker)


class _Worker:
    """A place for one process, used by one thread at a time.

    Attributes:
        process: The process; None before it is started and once it has ended.
        heard_s: Time of its last message, `time.monotonic`.
    """

    def __init__(self, niceness: int) -> None:
        self._niceness = niceness
        self.process: subprocess.Popen[bytes] | None = None
        self.heard_s = time.monotonic()
        self._connection = socket.socket(socket.AF_UNIX)
        self._is_greeted = False
        self._pixels = 0

    def start(self) -> None:
        """Start the process."""
        self._connection.close()
        self._connection, theirs = socket.socketpair()
        self._connection.settimeout(IDLE_TIMEOUT_S)
        self._is_greeted = False
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        # Threads of a mathematics library would only take address space.
        environment |= {"PYTHONPATH": str(_ROOT), "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "serving.decoding.worker", str(theirs.fileno()), str(self._niceness)],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def greet(self) -> str:
        """Start the process if none runs, and wait until it is ready; returns what its sandbox lacks, once."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        if self._is_greeted:
            return ""
        kind, problem = self._receive(_MAX_ANSWER_BYTES)
        if kind != HELLO:
            raise ConnectionError("an unexpected answer")
        self._is_greeted = True
        return problem.decode("utf-8", "replace")

    def ping(self) -> None:
        """Ask for a sign of life."""
        send_message(self._connection, PING)
        if self._receive(0)[0] != PONG:
            raise ConnectionError("no sign of life")

    def decode(self, job: bytes, image_size: int, take_pixels: Callable[[int], None]) -> npt.NDArray[np.uint8]:
        """Have one image decoded."""
        self._pixels, size_bytes = 0, image_size**2 * 3
        send_message(self._connection, IMAGE_FILE, job)
        kind, answer = self._receive(_MAX_ANSWER_BYTES)
        if kind == PIXELS:
            (self._pixels,) = struct.unpack("<Q", answer)
            try:
                take_pixels(self._pixels)
            except ServingError:
                send_message(self._connection, PIXELS_DENIED)
                self._receive(_MAX_ANSWER_BYTES)
                raise
            send_message(self._connection, GRANT)
            kind, answer = self._receive(max(size_bytes, _MAX_ANSWER_BYTES))
        if kind == REFUSAL:
            name, _, message = answer.decode("utf-8", "replace").partition("\n")
            raise _ERRORS.get(name, OverloadedError)(message)
        if kind != IMAGE or len(answer) != size_bytes:
            raise ConnectionError("an unexpected answer")
        return np.frombuffer(answer, np.uint8).reshape(image_size, image_size, 3)

    def _receive(self, max_bytes: int) -> tuple[int, bytes]:
        """Return the next message, as long as the process computes.

        Raises:
            OSError: There is none; TimeoutError if the process is stopped, hung, or takes too long.
        """
        end_s, used_before = time.monotonic() + ANSWER_TIMEOUT_S, self.count_cpu_ticks()
        while not select.select([self._connection], [], [], IDLE_TIMEOUT_S)[0]:
            used = self.count_cpu_ticks()
            if used == used_before or time.monotonic() > end_s:
                raise TimeoutError("no answer")
            used_before = used
        message = receive_message(self._connection, max_bytes)
        self.heard_s = time.monotonic()
        return message

    def count_cpu_ticks(self) -> int:
        """Return the CPU time that the process has used, clock ticks; 0 where the system does not tell."""
        if self.process is None:
            return 0
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0
        return int(fields[11]) + int(fields[12])

    def kill(self) -> None:
        """Kill the process, from any thread; whoever waits for its answer gets an end of file."""
        process = self.process
        if process is not None:
            process.kill()

    def end(self, error: Exception) -> ServingError:
        """Make sure that the process has ended, and return what is to be told about the image it had."""
        process, self.process = self.process, None
        self._connection.close()
        if process is None:
            return OverloadedError(f"no decoding process could be started ({error}); try again", _RETRY_AFTER_S)
        if isinstance(error, TimeoutError):
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
        process.kill()
        status = process.wait()
        if status == -signal.SIGPROF:
            return TooLargeError(
                f"the image takes more than the {allow_cpu_s(self._pixels):.1f} s of CPU time that its pixels allow; "
                "save it again with an ordinary encoder"
            )
        if isinstance(error, TimeoutError):
            return OverloadedError("the decoding process gave no answer in time; try again", _RETRY_AFTER_S)
        return OverloadedError(f"the decoding process ended (status {status}); try again", _RETRY_AFTER_S)
