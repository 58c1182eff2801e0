from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.bundle.session import CPU, open_session, run_session
from serving.bundle.store import MODEL_FILE, read_bundle
from serving.models.bound_session import BoundSession
from tests.unit.serving.tiny_bundle import COLOURS, IMAGE_SIZE, make_bundle


@pytest.fixture
def sessions(tmp_path):
    """(session, the same with fixed buffers): on the CPU, where buffers are bound in the same way."""
    folder = make_bundle(tmp_path)
    session = open_session(folder / MODEL_FILE, CPU, 1)
    return session, BoundSession(session, read_bundle(folder), "cpu")


def draw(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 2, 3, 33, 64, 65, 200])
def test_every_size_is_answered_as_without_buffers(sessions, count):
    session, bound = sessions
    answers_NK = bound.run(draw(count))
    assert (answers_NK.shape, answers_NK.dtype) == ((count, len(COLOURS)), np.float32)
    assert np.array_equal(answers_NK, run_session(session, draw(count)))


def test_an_answer_does_not_change_with_the_next_batch(sessions):
    _, bound = sessions
    first_NK = bound.run(draw(3, seed=1))
    kept_NK = first_NK.copy()
    bound.run(draw(4, seed=2))
    assert np.array_equal(first_NK, kept_NK)


def test_threads_get_their_own_answers(sessions):
    session, bound = sessions
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: bound.run(draw(5, seed)), range(200)))
    for seed, answer_NK in enumerate(answers):
        assert np.array_equal(answer_NK, run_session(session, draw(5, seed)))


def test_rows_that_are_not_contiguous_are_read_right(sessions):
    session, bound = sessions
    turned_NHWC = draw(4).transpose(0, 2, 1, 3)
    assert np.array_equal(bound.run(turned_NHWC), run_session(session, np.ascontiguousarray(turned_NHWC)))
