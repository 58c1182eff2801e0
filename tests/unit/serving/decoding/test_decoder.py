"""Queues in front of the processes that decode: what waits for what."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from serving.bundle.image_structure import Structure
from serving.bundle.preprocess import decode_picture
from serving.decoding import decoder as decoding
from serving.decoding.cost import Cost
from serving.decoding.decoder import Decoder
from serving.decoding.encoded import EncodedImage
from serving.errors import NotAnImageError, OverloadedError
from tests.unit.serving.image_bombs import bmps, encode

PHOTO = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)), "JPEG")
MANIFEST = SimpleNamespace(image_size=32, resize_size=36)


@pytest.fixture
def decoder():
    running = Decoder(allows_uncommon=True)
    yield running
    running.close()


def decode(decoder, *files):
    return decoder.decode(MANIFEST, [EncodedImage(data, None) for data in files])


def test_photographs_do_not_wait_for_larger_images(decoder):
    bomb = dict(bmps())["BMP, run-length, ends of lines"]

    async def run():
        large = [asyncio.create_task(decode(decoder, bomb)) for _ in range(4)]
        while sum(one.done() for one in large) < 3:
            await asyncio.sleep(0.01)
        for _ in range(5):
            images_NHWC = await decode(decoder, PHOTO, PHOTO)
        assert not all(one.done() for one in large)
        decoder.close()
        return images_NHWC, await asyncio.gather(*large, return_exceptions=True)

    images_NHWC, outcomes = asyncio.run(run())
    assert np.array_equal(images_NHWC[1], decode_picture(PHOTO, 32, 36))
    # One was decoded when the processes were ended; nobody waited for its end to be told so.
    assert [type(one) for one in outcomes] == [OverloadedError] * 4
    assert sum("1 image is waiting" in str(one) for one in outcomes) == 3


def test_an_image_larger_than_its_structure_says_is_decoded_as_a_large_one(decoder):
    image = EncodedImage(encode(Image.new("RGB", (3_000, 2_000), "red"), "PNG"), None)
    image.__dict__["structure"] = Structure("PNG", len(image.data), 30, 20)
    large, seen = decoder._lanes[Cost.LARGE].pool, []
    real = large.decode
    large.decode = lambda *arguments: seen.append(1) or real(*arguments)
    (image_HWC,) = asyncio.run(decoder.decode(MANIFEST, [image]))
    assert tuple(image_HWC[5, 5]) == (255, 0, 0)
    assert seen == [1]


class Held:
    """A process that decodes when it is let."""

    size = 1

    def __init__(self):
        self.is_let, self.decoded = threading.Event(), []

    def decode(self, data, *_):
        assert self.is_let.wait(20)
        self.decoded.append(data)
        return np.zeros((32, 32, 3), np.uint8)

    def count_silent_s(self):
        return 0.0

    def close(self):
        self.is_let.set()


@pytest.fixture
def held(monkeypatch):
    monkeypatch.setattr(decoding, "DecoderPool", lambda *_: Held())
    running = Decoder()
    yield running, running._lanes[Cost.ORDINARY].pool
    running.close()


def test_what_gets_no_turn_in_time_is_told_when_to_come_back(held, monkeypatch):
    decoder, pool = held
    monkeypatch.setattr(decoding, "MAX_TURN_S", 0.05)

    async def run():
        first = asyncio.create_task(decode(decoder, PHOTO))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match=r"no process was free to decode it for 0\.05 s") as caught:
            await decode(decoder, PHOTO)
        assert caught.value.retry_after_s == 2
        pool.is_let.set()
        await first
        await decode(decoder, PHOTO)

    asyncio.run(run())
    assert len(pool.decoded) == 2


def test_requests_of_many_images_take_turns_with_others(held):
    decoder, pool = held

    async def run():
        many = asyncio.create_task(decode(decoder, *[PHOTO + bytes([index]) for index in range(6)]))
        await asyncio.sleep(0)
        one = asyncio.create_task(decode(decoder, PHOTO))
        await asyncio.sleep(0)
        pool.is_let.set()
        await asyncio.gather(many, one)

    asyncio.run(run())
    assert len(pool.decoded) == 7
    assert pool.decoded.index(PHOTO) == 1


def test_a_request_of_many_slow_images_is_ended_between_two_of_them(held, monkeypatch):
    """Its client may have left: 64 images of 0.4 s each kept photographs waiting for a minute."""
    decoder, pool = held
    monkeypatch.setattr(decoding, "MAX_DECODE_S", 0.1)

    async def run():
        many = asyncio.create_task(decode(decoder, *[PHOTO + bytes([index]) for index in range(6)]))
        await asyncio.sleep(0.3)
        pool.is_let.set()
        with pytest.raises(OverloadedError, match=r"more than 0\.1 s together; send fewer at once"):
            await many
        assert len(pool.decoded) == 1
        await decode(decoder, PHOTO)

    asyncio.run(run())


def test_the_name_of_an_image_keeps_when_to_try_again():
    def refuse(data, take_pixels):
        raise OverloadedError("no room", 7)

    part = [(0, EncodedImage(b"x", "a.png"))]
    outcomes = decoding._decode_part(part, refuse, decoding._PixelBudget(2))
    assert str(outcomes[0]) == "image 1 of 2, 'a.png': no room"
    assert outcomes[0].retry_after_s == 7


def test_an_uncommon_format_is_told_with_the_name_of_its_image():
    running = Decoder()
    images = [EncodedImage(PHOTO, "a.jpg"), EncodedImage(b"P6 8 8 255 ", "b.ppm")]
    with pytest.raises(NotAnImageError, match=r"^image 2 of 2, 'b.ppm': 11 bytes that are no image"):
        running.check_formats(images)
    running.close()
