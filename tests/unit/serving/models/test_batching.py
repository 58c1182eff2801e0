import asyncio
import gc
import threading
import weakref

import numpy as np
import pytest

from serving.models import batching
from serving.models.batching import Batcher


class Model:
    """Answers each image with its first value; waits for `gate`, and keeps the sizes of its batches."""

    def __init__(self):
        self.sizes = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def classify(self, images_NHWC):
        self.begun.set()
        assert self.gate.wait(10)
        self.sizes.append(len(images_NHWC))
        if (images_NHWC == 255).any():
            raise ValueError("white")
        return images_NHWC[:, 0, 0, :1].astype(np.float32)


def draw(*values):
    return np.stack([np.full((2, 2, 3), value, dtype=np.uint8) for value in values])


async def begin(batcher, model, *requests):
    """Let one request occupy the device, queue the others, then open the gate; the tasks come back."""
    model.gate.clear()
    first = asyncio.create_task(batcher.classify(model, draw(0)))
    await asyncio.to_thread(model.begun.wait, 10)
    tasks = [asyncio.create_task(batcher.classify(*request)) for request in requests]
    await asyncio.sleep(0)
    return [first, *tasks]


def test_what_waits_is_one_batch_and_everyone_gets_their_own_answer():
    async def run():
        told, model = [], Model()
        batcher = Batcher(on_batch=told.append)
        tasks = await begin(batcher, model, *((model, draw(*values)) for values in ((1,), (2, 3), (4, 5, 6))))
        assert batcher.waiting == 3
        model.gate.set()
        answers = await asyncio.gather(*tasks)
        assert [answer[:, 0].tolist() for answer in answers] == [[0], [1], [2, 3], [4, 5, 6]]
        assert model.sizes == told == [1, 6]
        assert batcher.waiting == 0
        assert (await batcher.classify(model, draw(7))).tolist() == [[7]]
        batcher.close()

    asyncio.run(run())


def test_an_image_that_comes_alone_is_decoded_where_it_is_classified():
    async def run():
        told, model, threads = [], Model(), []
        batcher = Batcher(on_batch=told.append)

        def decode():
            assert not batcher.is_idle
            threads.append(threading.current_thread().name)
            return draw(9)

        def fail():
            raise OSError("damaged")

        assert batcher.is_idle
        assert (await batcher.decode_and_classify(model, decode)).tolist() == [[9]]
        assert threads == ["classify_0"]
        with pytest.raises(OSError, match="damaged"):
            await batcher.decode_and_classify(model, fail)
        assert batcher.is_idle
        # What comes meanwhile shares a batch, as behind any other.
        model.gate.clear()
        model.begun.clear()
        first = asyncio.create_task(batcher.decode_and_classify(model, decode))
        await asyncio.to_thread(model.begun.wait, 10)
        others = [asyncio.create_task(batcher.classify(model, draw(value))) for value in (1, 2)]
        await asyncio.sleep(0)
        model.gate.set()
        assert [answer.tolist() for answer in await asyncio.gather(first, *others)] == [[[9]], [[1]], [[2]]]
        assert told == [1, 1, 2]
        batcher.close()

    asyncio.run(run())


def test_a_batch_has_its_limit_and_one_model():
    async def run():
        model, other = Model(), Model()
        batcher = Batcher(max_images=4)
        requests = [(model, draw(1, 2, 3)), (other, draw(9)), (model, draw(4, 5)), (model, draw(6)), (other, draw(8))]
        tasks = await begin(batcher, model, *requests, (model, draw(*range(10, 16))))
        model.gate.set()
        answers = await asyncio.gather(*tasks)
        assert [answer[:, 0].tolist() for answer in answers[1:6]] == [[1, 2, 3], [9], [4, 5], [6], [8]]
        assert model.sizes == [1, 4, 2, 6]
        assert other.sizes == [2]
        batcher.close()

    asyncio.run(run())


def test_a_cancelled_request_costs_nothing_and_spoils_nothing():
    async def run():
        model = Model()
        batcher = Batcher()
        tasks = await begin(batcher, model, (model, draw(1)), (model, draw(255)), (model, draw(3)))
        tasks[2].cancel()
        await asyncio.sleep(0)
        model.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[2], asyncio.CancelledError)
        assert [answers[index][0, 0] for index in (0, 1, 3)] == [0, 1, 3]
        assert model.sizes == [1, 2]
        batcher.close()

    asyncio.run(run())


def test_a_cancelled_request_gives_its_images_up_at_once():
    async def run():
        model, batcher = Model(), Batcher()
        images = draw(1)
        given_up = weakref.ref(images)
        [first, cancelled] = await begin(batcher, model, (model, images))
        cancelled.cancel()
        await asyncio.wait([cancelled])
        del images, cancelled
        gc.collect()
        assert batcher.waiting == 0
        assert given_up() is None
        model.gate.set()
        assert (await first).tolist() == [[0]]
        batcher.close()

    asyncio.run(run())


def test_who_is_cancelled_on_the_device_keeps_nobody_from_an_answer():
    async def run():
        loop = asyncio.get_running_loop()

        class Cancelling(Model):
            def classify(self, images_NHWC):
                if len(images_NHWC) > 1:
                    loop.call_soon_threadsafe(tasks[1].cancel)
                return super().classify(images_NHWC)

        model, batcher = Cancelling(), Batcher()
        tasks = await begin(batcher, model, *((model, draw(value)) for value in (1, 2, 3)))
        model.gate.set()
        assert [(await asyncio.wait_for(task, 10)).tolist() for task in tasks[2:]] == [[[2]], [[3]]]
        assert tasks[1].cancelled()
        batcher.close()

    asyncio.run(run())


def test_a_model_that_was_replaced_is_not_kept():
    async def run():
        model, batcher = Model(), Batcher()
        kept = weakref.ref(model)
        await batcher.classify(model, draw(1))
        del model
        await batcher.classify(Model(), draw(1))
        gc.collect()
        assert kept() is None
        batcher.close()

    asyncio.run(run())


def test_an_error_reaches_its_batch_and_the_next_one_runs():
    async def run():
        model = Model()
        batcher = Batcher(max_images=2)
        tasks = await begin(batcher, model, (model, draw(1)), (model, draw(255)), (model, draw(3)))
        model.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answers[index]) for index in (1, 2)] == [ValueError, ValueError]
        assert answers[3].tolist() == [[3]]
        batcher.close()

    asyncio.run(run())


def test_at_the_end_what_runs_is_answered_and_what_waits_is_cancelled():
    async def run():
        model = Model()
        batcher = Batcher()
        tasks = await begin(batcher, model, (model, draw(1)))
        threading.Timer(0.1, model.gate.set).start()
        batcher.close()
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert answers[0].tolist() == [[0]]
        assert isinstance(answers[1], asyncio.CancelledError)

    asyncio.run(run())


def test_many_at_once_are_all_answered():
    async def run():
        model, count = Model(), 200
        batcher = Batcher()
        answers = await asyncio.gather(*(batcher.classify(model, draw(number % 250)) for number in range(count)))
        assert [answer[0, 0] for answer in answers] == [number % 250 for number in range(count)]
        assert sum(model.sizes) == count
        assert len(model.sizes) < count / 10
        batcher.close()

    asyncio.run(run())


@pytest.mark.parametrize(("last_s", "hung_after_s"), [(None, 60), (0.001, 10), (0.25, 16), (5, 60)])
def test_a_batch_hangs_only_when_its_model_was_faster(monkeypatch, last_s, hung_after_s):
    """A first batch of a slow model may take as long as an answer; a second is measured against it."""
    now_s = 1000.0

    class Clock:
        monotonic = staticmethod(lambda: now_s)

    async def run():
        nonlocal now_s
        model, batcher = Model(), Batcher()
        if last_s is not None:
            (first,) = await begin(batcher, model)
            now_s += last_s
            model.gate.set()
            await first
            assert not batcher.is_hung
        model.begun.clear()
        model.gate.clear()
        task = asyncio.create_task(batcher.classify(model, draw(*range(8))))
        await asyncio.to_thread(model.begun.wait, 10)
        now_s += hung_after_s - 0.1
        assert not batcher.is_hung
        now_s += 0.2
        assert batcher.is_hung
        model.gate.set()
        await task
        assert not batcher.is_hung
        batcher.close()

    monkeypatch.setattr(batching, "time", Clock)
    asyncio.run(run())
