"""Small files that are costly to decode, of every format and kind of part, and honest large images beside them.

python -m tests.unit.serving.image_bombs            the table of docs/decoding.md, measured in the workers
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from serving.decoding.pool import DecoderPool
from serving.decoding.worker import allow_cpu_s
from serving.errors import ServingError

Named = Iterator[tuple[str, bytes]]
MOST_BYTES = 1_000_000
_SIDE = 7_000


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image's file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def fill(part: bytes) -> bytes:
    """Repeat a part until it fills the file."""
    return part * max(1, MOST_BYTES // max(1, len(part)))


def segment(marker: int, payload: bytes = b"") -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def progressive(side: int, scans: int) -> bytes:
    """Return a grey JPEG whose scans all say, in a few bytes, that every block ends."""
    blocks = ((side + 7) // 8) ** 2
    bits, left = "", blocks
    while left >= 2**14:
        run = min(left, 2**15 - 1)
        bits += "0" + format(run - 2**14, "014b")
        left -= run
    bits += "10" * left
    bits += "1" * (-len(bits) % 8)
    data = bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    head = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64))
    head += segment(0xC2, struct.pack(">BHHBBBB", 8, side, side, 1, 1, 0x11, 0))
    head += segment(0xC4, b"\x00" + bytes([1] + [0] * 15) + b"\0")
    head += segment(0xC4, b"\x10" + bytes([1, 1] + [0] * 14) + b"\xe0\x00")
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes((blocks + 7) // 8)
    return head + first + (segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + data) * scans + b"\xff\xd9"


def jpegs() -> Named:
    plain = encode(Image.new("RGB", (64, 64)), "JPEG")
    for marker in (0x01, 0xC4, 0xD0, 0xD8, 0xDB, 0xDC, 0xDD, 0xC0, 0xC2, 0xFE, *range(0xE0, 0xF0)):
        part = bytes((0xFF, marker)) if marker in (0x01, 0xD0, 0xD8) else segment(marker, bytes(4))
        yield f"JPEG, marker {marker:02X} repeated", plain[:2] + fill(part) + plain[2:]
    scan = plain.index(b"\xff\xda") + 14
    yield "JPEG, restart markers in a scan", plain[:scan] + fill(b"\xff\xd0\xff\xd1") + plain[scan:]
    yield "JPEG, fill bytes", plain[:2] + fill(b"\xff") + plain[2:]
    yield "JPEG, stuffed bytes between segments", plain[:2] + fill(b"\xff\0") + plain[2:]
    yield "JPEG, nothing but fill bytes", plain[:3] + fill(b"\xff")
    tags = struct.pack(">HHII", 0x0110, 2, 4, 0) * 5_000
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 5_000) + tags
    yield "JPEG, EXIF of 5,000 tags", plain[:2] + segment(0xE1, exif) + plain[2:]
    yield "JPEG, APP1 of 64 kB repeated", plain[:2] + fill(segment(0xE1, exif)) + plain[2:]
    for count, tag_bytes in ((5_300, 60_000), (650, 60_000)):
        directory = b"MM\0*\0\0\0\x08" + struct.pack(">H", count)
        directory += b"".join(struct.pack(">HHII", 1_000 + tag, 1, tag_bytes, 8) for tag in range(count)) + bytes(4)
        exif = segment(0xE1, b"Exif\0\0" + directory)
        yield f"JPEG, EXIF of {count:,} tags that are too long", plain[:2] + exif + plain[2:]
        yield f"JPEG, {count:,} tags of many images", plain[:2] + segment(0xE2, b"MPF\0" + directory) + plain[2:]
    for side, scans in ((64, 20_000), (3_500, 1_000), (_SIDE, 60), (_SIDE, 300)):
        yield f"JPEG, {side}x{side}, {scans:,} scans", progressive(side, scans)


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pngs() -> Named:
    plain = encode(Image.new("RGB", (16, 16)), "PNG")
    zeros = zlib.compress(bytes(1_000_000), 9)
    parts = {
        "tEXt": chunk(b"tEXt", b"a\0"),
        "zTXt": chunk(b"zTXt", b"a\0\0" + zeros),
        "iTXt": chunk(b"iTXt", b"a\0\1\0\0\0" + zeros),
        "iCCP": chunk(b"iCCP", b"a\0\0" + zeros),
        "eXIf": chunk(b"eXIf", b"MM\0*" + bytes(8)),
        "acTL": chunk(b"acTL", struct.pack(">II", 9_999, 0)),
        "fcTL": chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 16, 16, 0, 0, 1, 1, 0, 0)),
        "fdAT": chunk(b"fdAT", bytes(4)),
        "IDAT": chunk(b"IDAT"),
        "PLTE": chunk(b"PLTE", bytes(3)),
        "tRNS": chunk(b"tRNS", bytes(6)),
        "gAMA": chunk(b"gAMA", bytes(4)),
        "cHRM": chunk(b"cHRM", bytes(32)),
        "pHYs": chunk(b"pHYs", bytes(9)),
        "prVt": chunk(b"prVt"),
    }
    for kind, part in parts.items():
        yield f"PNG, {kind} repeated", plain[:33] + fill(part) + plain[33:]
    yield "PNG, empty IDAT after the first", plain[:-12] + fill(chunk(b"IDAT")) + plain[-12:]
    for mode in ("RGB", "RGBA", "I;16", "P", "1"):
        yield f"PNG, {_SIDE}x{_SIDE}, {mode}", encode(Image.new(mode, (_SIDE, _SIDE)), "PNG")


def gifs() -> Named:
    plain = encode(Image.new("P", (16, 16)), "GIF")
    start = plain.index(b",") if b"!" not in plain[:800] else plain.index(b"!")
    parts = {
        "comments": b"!\xfe\x01a\0",
        "applications": b"!\xff\x0bNETSCAPE2.0\x01a\0",
        "controls": b"!\xf9\4\0\0\0\0\0",
    }
    for name, part in parts.items():
        yield f"GIF, {name} repeated", plain[:start] + fill(part) + plain[start:]
    yield "GIF, one comment of many blocks", plain[:start] + b"!\xfe" + fill(b"\1a") + b"\0" + plain[start:]
    yield "GIF, bytes of no block", plain[:start] + fill(b"\1") + plain[start:]
    frame = plain[plain.index(b",") : -1]
    yield "GIF, frames repeated", plain[:-1] + fill(frame) + b";"
    yield f"GIF, {_SIDE}x{_SIDE}", encode(Image.new("P", (_SIDE, _SIDE)), "GIF")


def webps() -> Named:
    image = Image.new("RGB", (16, 16))
    plain = encode(image, "WEBP")
    for kind in (b"EXIF", b"XMP ", b"ICCP", b"ANMF", b"ALPH", b"junk"):
        body = plain[12:] + fill(kind + struct.pack("<I", 0))
        yield f"WebP, {kind.decode()} repeated", b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    frames = [Image.new("RGB", (16, 16), (index % 256, index // 256, 0)) for index in range(1_000)]
    yield "WebP, 1,000 frames", encode(image, "WEBP", save_all=True, append_images=frames)
    for is_lossless in (False, True):
        name = "lossless" if is_lossless else "lossy"
        yield (
            f"WebP, {_SIDE}x{_SIDE}, {name}",
            encode(Image.new("RGB", (_SIDE, _SIDE)), "WEBP", lossless=is_lossless, method=0),
        )


def bmps() -> Named:
    def bmp(width: int, height: int, bits: int, compression: int, body: bytes) -> bytes:
        palette = bytes(4 * 256) if bits <= 8 else b""
        header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 256, 0)
        offset = 54 + len(palette)
        return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + palette + body

    yield "BMP, run-length, ends of lines", bmp(_SIDE, _SIDE, 8, 1, b"\1\1\0\0" * _SIDE + b"\0\1")
    yield "BMP, run-length, deltas", bmp(_SIDE, _SIDE, 8, 1, fill(b"\0\2\1\0"))
    yield "BMP, run-length, runs of one", bmp(_SIDE, _SIDE, 4, 2, fill(b"\1\1"))
    yield "BMP, 1 bit", encode(Image.new("1", (_SIDE, _SIDE)), "BMP")[:MOST_BYTES]


def tiffs() -> Named:
    def tiff(tags: dict[int, tuple[int, int, int]], extra: bytes = b"") -> bytes:
        entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
        return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + extra

    def describe(width: int, height: int, **more: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
        tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}
        return tags | {int(name[1:]): entry for name, entry in more.items()}

    many = dict.fromkeys(range(40000, 60000), (2, 4, 0))
    yield "TIFF, 20,000 tags", tiff(describe(8, 8) | many)
    count = 30_000
    strips = struct.pack("<I", 500) * count
    at = 8 + 2 + 12 * 9 + 4
    layout = {"t278": (4, 1, 1), "t273": (4, count, at), "t279": (4, count, at)}
    yield "TIFF, 30,000 strips", tiff(describe(16, count, **layout), strips)
    layout = {"t322": (4, 1, 1), "t323": (4, 1, 1), "t324": (4, 200_000, at), "t325": (4, 200_000, at)}
    yield "TIFF, 200,000 tiles of a pixel", tiff(describe(500, 400, **layout), struct.pack("<I", 500) * 200_000)
    yield "TIFF, its own next page", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"
    big = Image.new("RGB", (_SIDE, _SIDE))
    yield f"TIFF, {_SIDE}x{_SIDE}, CMYK", encode(big.convert("CMYK"), "TIFF", compression="tiff_lzw")
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "group4", "zstd", "jpeg"):
        image = big.convert("1") if name == "group4" else big
        yield f"TIFF, {_SIDE}x{_SIDE}, {name}", encode(image, "TIFF", compression=name)


def ppms() -> Named:
    yield "PPM, plain", b"P3 500 500 255 " + fill(b"1 ")
    yield "PPM, plain bits", b"P1 1000 1000 " + fill(b"1")
    yield "PPM, comments", b"P3 " + fill(b"#\n") + b"9 9 255 " + b"1 " * 243
    yield "PPM, odd maximum", b"P6 700 700 1000 " + fill(b"\1")
    yield "PFM", b"Pf 500 500 -1.0\n" + fill(b"\0")


def put_in(head: int, *parts: bytes) -> Callable[[bytes], bytes]:
    """Return what puts parts into a file, behind so many bytes of it."""
    return lambda file: file[:head] + b"".join(parts) + file[head:]


def put_in_riff(file: bytes) -> bytes:
    """Put unknown chunks before a WebP's frame."""
    image = Image.open(io.BytesIO(file))
    sizes = b"".join(struct.pack("<I", side - 1)[:3] for side in image.size)
    body = b"WEBP" + b"VP8X" + struct.pack("<II", 10, 0) + sizes + (b"junk" + bytes(4)) * 9_000 + file[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def put_in_tiff(file: bytes) -> bytes:
    """Put tags behind those of a TIFF's directory, which Pillow writes last or first."""
    (start,) = struct.unpack_from("<I", file, 4)
    (count,) = struct.unpack_from("<H", file, start)
    tags = file[start + 2 : start + 2 + 12 * count]
    more = b"".join(struct.pack("<HHII", tag, 2, 4, 0) for tag in range(50_000, 50_400))
    directory = struct.pack("<H", count + 400) + tags + more + bytes(4)
    return file[:4] + struct.pack("<I", len(file)) + file[8:] + directory


def compose() -> Named:
    """Yield costly images behind costly beginnings, each with each of its format, and JPEG's beginnings with all."""
    side = 4_000
    rgb, palette = Image.new("RGB", (side, side)), Image.new("P", (side, side))
    gif = encode(palette, "GIF")
    header = 13 + (3 * (2 << (gif[10] & 7)) if gif[10] & 0x80 else 0)
    tails = {
        "JPEG": {"60 scans": progressive(side, 60), "baseline": encode(rgb, "JPEG")},
        "PNG": {"RGBA": encode(rgb.convert("RGBA"), "PNG"), "interlaced bits": encode(rgb.convert("1"), "PNG")},
        "GIF": {"one frame": gif},
        "WEBP": {"lossy": encode(rgb, "WEBP", method=0), "lossless": encode(rgb, "WEBP", lossless=True, method=0)},
        "TIFF": {
            "LZW": encode(rgb, "TIFF", compression="tiff_lzw"),
            "30,000 strips": dict(tiffs())["TIFF, 30,000 strips"],
        },
        "BMP": {"bits": encode(rgb.convert("1"), "BMP")},
    }
    beginnings = {
        "JPEG": {
            "1,900 segments": put_in(2, segment(0xE5, bytes(4)) * 1_900),
            "fill bytes": put_in(2, b"\xff" * 60_000),
            "stuffed bytes": put_in(2, b"\xff\0" * 30_000),
        },
        "PNG": {
            "63 profiles and texts": put_in(33, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MOST_BYTES), 9)) * 63),
            "9,000 chunks": put_in(33, chunk(b"prVt") * 9_000),
        },
        "GIF": {"12,000 blocks": put_in(header, b"!\xfe\1a\0" * 6_000)},
        "WEBP": {"9,000 chunks": put_in_riff},
        "TIFF": {"400 tags": put_in_tiff},
        "BMP": {
            "a gap": lambda file: file[:10] + struct.pack("<I", 62 + 90_000) + file[14:62] + bytes(90_000) + file[62:]
        },
    }
    for kind, files in tails.items():
        for tail, file in files.items():
            for beginning, change in beginnings[kind].items():
                yield f"{kind}, {beginning}, then {tail}", change(file)
        for marker in (0xE1, 0xFE):
            yield f"{kind} behind a JPEG's segment {marker:02X}", b"\xff\xd8" + segment(marker, bytes(60_000)) + file
        yield (
            f"{kind} in a JPEG's segment",
            put_in(2, segment(0xE1, b"Exif\0\0" + file[:60_000]))(tails["JPEG"]["baseline"]),
        )


def all_bombs() -> Named:
    """Yield every bomb with its name, which begins with its format."""
    for kind in (jpegs, pngs, gifs, webps, bmps, tiffs, ppms):
        yield from kind()


def honest_images() -> Named:
    """Yield the largest images that are accepted, with content as photographs have."""
    noise = np.random.default_rng(0).normal(0, 6, (1_500, 2_000, 3))
    shades = np.linspace(0, 200, 2_000)[None, :, None]
    photo = Image.fromarray((noise + shades + 25).clip(0, 255).astype(np.uint8)).resize((8_000, 6_000))
    small = photo.resize((2_000, 1_500))
    yield "JPEG, 48 megapixels", encode(photo, "JPEG", quality=75)
    yield "JPEG, 48 megapixels, progressive", encode(photo, "JPEG", quality=75, progressive=True)
    for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF"):
        yield f"{kind}, 3 megapixels", encode(small, kind)


def measure(pool: DecoderPool, data: bytes) -> tuple[str, float, int]:
    """Decode in the pool's one worker; returns the outcome, its CPU seconds, and the pixels that were announced."""
    announced = []
    pool.decode(encode(Image.new("RGB", (8, 8)), "GIF"), 32, 32, lambda _: None)
    worker = pool._workers[0]
    pid, before = pool.pids, worker.count_cpu_ticks()
    try:
        pool.decode(data, 32, 32, announced.append)
        outcome = "decoded"
    except ServingError as error:
        outcome = f"{type(error).__name__}: {error}"
    pixels = max(announced, default=0)
    if pool.pids == pid:
        return outcome, (worker.count_cpu_ticks() - before) / 100, pixels
    return outcome, allow_cpu_s(pixels), pixels


def main() -> None:
    """Print the table."""
    pool = DecoderPool(1, allows_uncommon=True)
    print("| image | bytes | allowed CPU s | CPU s | outcome |\n|---|--:|--:|--:|---|")
    for images in (honest_images(), all_bombs()):
        for name, data in images:
            outcome, cpu_s, pixels = measure(pool, data)
            print(f"| {name} | {len(data):,} | {allow_cpu_s(pixels):.1f} | {cpu_s:.2f} | {outcome[:70]} |", flush=True)
    pool.close()


if __name__ == "__main__":
    main()
