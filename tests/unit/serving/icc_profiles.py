"""ICC profiles of version 2 with one gamma for each channel; ICC.1:2001-04."""

import struct

SRGB_PRIMARIES = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
WIDE_PRIMARIES = ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249))
_WHITE = (0.9642, 1.0, 0.8249)


def make_rgb_profile(primaries, gamma, description="made for a test"):
    tags = [(b"rgb"[at : at + 1] + b"XYZ", _xyz(*primary)) for at, primary in enumerate(primaries)]
    tags += [(letter + b"TRC", _curve(gamma)) for letter in (b"r", b"g", b"b")]
    return _make(b"RGB ", description, tags)


def make_grey_profile(gamma):
    return _make(b"GRAY", "made for a test", [(b"kTRC", _curve(gamma))])


def _make(model, description, tags):
    text = description.encode() + b"\0"
    tags = [
        (b"desc", b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)),
        (b"cprt", b"text\0\0\0\0none\0"),
        (b"wtpt", _xyz(*_WHITE)),
        *tags,
    ]
    table, content, start = b"", b"", 132 + 12 * len(tags)
    for name, unpadded in tags:
        data = unpadded + bytes(-len(unpadded) % 4)
        table += name + struct.pack(">II", start + len(content), len(data))
        content += data
    head = struct.pack(">I4sI4s4s4s", start + len(content), bytes(4), 0x02400000, b"mntr", model, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(*_WHITE)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + content


def _xyz(*values):
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65_536)) for value in values)


def _curve(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
