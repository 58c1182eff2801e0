"""Process that decodes images of strangers for the service, in a sandbox, one at a time.

    python -m serving.decoding.worker FD NICENESS        FD: its end of a socket pair; it ends when the other end closes

Messages are a kind of one byte, a length of four, and a payload; nothing is pickled. For each job it asks for room for
the image's pixels before it decodes them, and answers with the decoded image or an error. An image that needs more CPU
time than its pixels allow ends the process (ITIMER_PROF, whose default action the kernel takes).
"""

import io
import os
import signal
import socket
import struct
import sys
import warnings

from PIL import Image, ImageCms, MpoImagePlugin, features

from serving.bundle.image_structure import check_structure
from serving.bundle.preprocess import FORMATS, MAX_PIXELS, decode_picture
from serving.decoding.sandbox import end_with_parent, forbid_system_calls, limit_resources
from serving.errors import ServingError, TooLargeError

# CPU time of one image: until its size is known, and then for each pixel (docs/decoding.md).
CPU_BASE_S = 1.0
CPU_S_PER_PIXEL = 1e-7
# 12 bytes for each of 50 million pixels, the encoded file, and Pillow's arenas. libwebp takes 20 bytes a pixel.
EXTRA_MEMORY_BYTES = 800_000_000
MAX_WEBP_PIXELS = 32_000_000

JOB = struct.Struct("<II?")
HELLO, PING, PONG, IMAGE_FILE, PIXELS, GRANT, PIXELS_DENIED, IMAGE, REFUSAL = b"h?!fpgdix"
_HEAD = struct.Struct("<BI")
_MAX_TEXT_BYTES = 4_000


def send_message(connection: socket.socket, kind: int, payload: bytes = b"") -> None:
    """Send one message.

    Raises:
        OSError: The other side is gone, or does not read within the socket's timeout.
    """
    connection.sendall(_HEAD.pack(kind, len(payload)) + payload)


def receive_message(connection: socket.socket, max_bytes: int) -> tuple[int, bytes]:
    """Return the next message's kind and payload.

    Raises:
        OSError: The other side is gone, sends nothing within the socket's timeout, or more than `max_bytes`.
    """
    kind, size = _HEAD.unpack(_receive(connection, _HEAD.size))
    if size > max_bytes:
        raise OSError(f"a message of {size} bytes")
    return kind, bytes(_receive(connection, size))


def _receive(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = connection.recv_into(view[done:])
        if not count:
            raise EOFError("the other side has closed")
        done += count
    return data


def allow_cpu_s(pixels: int) -> float:
    """Return the CPU time that an image of so many pixels may take, seconds."""
    return CPU_BASE_S + CPU_S_PER_PIXEL * pixels


def main() -> None:
    """Answer jobs until the service closes its end."""
    end_with_parent()
    connection = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    _load_everything()
    os.nice(int(sys.argv[2]))
    limit_resources(EXTRA_MEMORY_BYTES)
    send_message(connection, HELLO, forbid_system_calls().encode())
    try:
        while True:
            kind, payload = receive_message(connection, 2**31)
            if kind == PING:
                send_message(connection, PONG)
            else:
                _answer(connection, payload)
    except (EOFError, ConnectionError):
        return


def _load_everything() -> None:
    """Import what the first image of each format would: no file can be opened later."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in FORMATS:
        if name == "WEBP" and not features.check("webp"):
            continue
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        more = {} if name in ("BMP", "PPM", "GIF") else {"exif": exif, "icc_profile": profile}
        Image.new("RGB", (8, 8)).save(buffer, name, **more)
        decode_picture(buffer.getvalue(), 4)
    assert MpoImagePlugin  # jpeg_factory imports it late


def _answer(connection: socket.socket, job: bytes) -> None:
    image_size, resize_size, allows_uncommon = JOB.unpack_from(job)
    data = job[JOB.size :]

    def ask_for_room(pixels: int) -> None:
        send_message(connection, PIXELS, struct.pack("<Q", pixels))
        if receive_message(connection, 0)[0] != GRANT:
            raise TooLargeError("the service has no room for the image")
        signal.setitimer(signal.ITIMER_PROF, allow_cpu_s(pixels))

    signal.setitimer(signal.ITIMER_PROF, allow_cpu_s(0))
    try:
        structure = check_structure(data, allows_uncommon)
        formats = FORMATS if structure.format is None else (structure.format,)
        max_pixels = MAX_WEBP_PIXELS if structure.format == "WEBP" else MAX_PIXELS
        pixels_HWC = decode_picture(data, image_size, resize_size, max_pixels, ask_for_room, formats)
        kind, answer = IMAGE, pixels_HWC.tobytes()
    except ServingError as error:
        kind, answer = REFUSAL, f"{type(error).__name__}\n{error}".encode("utf-8", "replace")[:_MAX_TEXT_BYTES]
    signal.setitimer(signal.ITIMER_PROF, 0)
    send_message(connection, kind, answer)


if __name__ == "__main__":
    main()
