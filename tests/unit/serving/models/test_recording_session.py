"""A session that records graphs, with a stand-in for the GPU: which thread asks, in which order, and who is timed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from serving.bundle.session import CPU, CUDA, open_session, run_session
from serving.bundle.store import MODEL_FILE, read_bundle
from serving.errors import BundleError
from serving.models import bound_session, classifier
from serving.models.bound_session import BATCH_BUCKETS, BoundSession, bind_on_cuda
from serving.models.classifier import Classifier
from tests.unit.serving.tiny_bundle import IMAGE_SIZE, make_bundle, make_two_variants


class GraphSession:
    """Runs on the CPU; like onnxruntime on CUDA, it keeps a graph for the thread and the number that recorded it."""

    running, most = 0, 0
    guard = threading.Lock()

    def __init__(self, session, pause_s=0.0):
        self.session, self.pause_s = session, pause_s
        self.recorded, self.calls = {}, []

    def io_binding(self):
        return self.session.io_binding()

    def _enter(self, change):
        with self.guard:
            GraphSession.running += change
            GraphSession.most = max(GraphSession.most, GraphSession.running)

    def run_with_iobinding(self, binding, options):
        graph, thread = options.get_run_config_entry("gpu_graph_id"), threading.get_ident()
        self._enter(1)
        time.sleep(self.pause_s)
        self.calls.append(("replayed" if (thread, graph) in self.recorded else "recorded", graph))
        self.recorded[thread, graph] = True
        self.session.run_with_iobinding(binding)
        self._enter(-1)

    def run(self, names, inputs, options=None):
        self._enter(1)
        self.calls.append(("plain", options.get_run_config_entry("gpu_graph_id")))
        answers = self.session.run(names, inputs)
        self._enter(-1)
        return answers


def draw(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A bundle, its session on the CPU, and buffers there where CUDA's are wanted."""
    folder = make_bundle(tmp_path)
    make = bound_session.onnxruntime.OrtValue

    class OnCpu:
        ortvalue_from_numpy = staticmethod(
            lambda array, _device, number: make.ortvalue_from_numpy(array, "cpu", number)
        )
        ortvalue_from_shape_and_type = staticmethod(
            lambda shape, kind, _device, number: make.ortvalue_from_shape_and_type(shape, kind, "cpu", number)
        )

    monkeypatch.setattr(bound_session.onnxruntime, "OrtValue", OnCpu)
    monkeypatch.setattr(GraphSession, "most", 0)
    return folder, open_session(folder / MODEL_FILE, CPU, 1)


def test_graphs_are_recorded_once_before_the_first_question_and_replayed_whoever_asks(bundle):
    folder, session = bundle
    graphs = GraphSession(session)
    bound = BoundSession(graphs, read_bundle(folder), "cuda", has_graphs=True)
    numbers = [str(number) for number in range(1, len(BATCH_BUCKETS) + 1)]
    assert graphs.calls == [(what, number) for number in numbers for what in ("recorded", "replayed")]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: bound.run(draw(5, seed)), range(40)))
    assert set(graphs.calls[2 * len(numbers) :]) == {("replayed", "4")}
    assert len({thread for thread, _ in graphs.recorded}) == 1
    for seed, answer_NK in enumerate(answers):
        assert np.array_equal(answer_NK, run_session(session, draw(5, seed)))
    assert bound.run(draw(65)).shape == (65, 6)
    assert graphs.calls[-1] == ("plain", "-1")


def test_nothing_else_runs_on_the_gpu_while_a_graph_is_recorded(bundle):
    folder, session = bundle
    manifest = read_bundle(folder)
    first = BoundSession(GraphSession(session), manifest, "cuda", has_graphs=True)
    stopping = threading.Event()

    def ask():
        while not stopping.is_set():
            first.run(draw(3))

    asker = threading.Thread(target=ask)
    asker.start()
    BoundSession(GraphSession(session, pause_s=0.01), manifest, "cuda", has_graphs=True)
    stopping.set()
    asker.join()
    assert GraphSession.most == 1


@pytest.mark.parametrize("bucket", BATCH_BUCKETS)
def test_graphs_of_which_one_answers_otherwise_are_not_used(bucket, bundle, monkeypatch):
    folder, session = bundle

    class Wrong(GraphSession):
        def run_with_iobinding(self, binding, options):
            super().run_with_iobinding(binding, options)
            if self.calls[-1][1] == str(BATCH_BUCKETS.index(bucket) + 1):
                binding.get_outputs()[0].update_inplace(np.full((bucket, 6), 1 / 6, np.float32))

    monkeypatch.setattr(bound_session, "open_session", lambda *_, **__: Wrong(session))
    plain = GraphSession(session)
    plain.run_with_iobinding = lambda binding, _options: session.run_with_iobinding(binding)
    plain.run = lambda names, inputs, _options=None: session.run(names, inputs)
    bound = bind_on_cuda(folder / MODEL_FILE, plain, read_bundle(folder), 1, draw(3), 1e-3)
    assert not bound.has_graphs
    assert np.array_equal(bound.run(draw(8)), run_session(session, draw(8)))


def test_graphs_that_answer_alike_are_used(bundle, monkeypatch):
    folder, session = bundle
    monkeypatch.setattr(bound_session, "open_session", lambda *_, **__: GraphSession(session))
    assert bind_on_cuda(folder / MODEL_FILE, session, read_bundle(folder), 1, draw(3), 1e-3).has_graphs


def refuse_to_bind(monkeypatch, refused):
    """Let the sessions be on the CPU, and binding on CUDA fail for some precisions."""

    def bind(file, session, *_):
        if any(precision in file.name for precision in refused):
            raise BundleError("onnxruntime cannot bind buffers on cuda: no memory")
        return SimpleNamespace(run=partial(run_session, session))

    def opened(self, _precision, _requires):
        return CUDA, {variant.precision: self._open(variant, CPU) for variant in self.manifest.offered}, ()

    monkeypatch.setattr(classifier, "bind_on_cuda", bind)
    monkeypatch.setattr(Classifier, "_open_sessions", opened)


def test_a_variant_that_cannot_be_bound_leaves_the_answers_to_another(tmp_path, monkeypatch):
    refuse_to_bind(monkeypatch, {"int8"})
    chosen = Classifier(make_two_variants(tmp_path), "1", 1)
    assert chosen.identity.precision == "fp32"
    assert chosen.classify(draw(2)).shape == (2, 6)
    assert chosen.problems == ("int8: onnxruntime cannot bind buffers on cuda: no memory",)
    assert "no memory" in chosen.choice


def test_a_model_none_of_whose_variants_can_be_bound_does_not_serve(tmp_path, monkeypatch):
    refuse_to_bind(monkeypatch, {"model"})
    with pytest.raises(BundleError, match=r"fp32: onnxruntime cannot bind .*; int8: onnxruntime cannot bind"):
        Classifier(make_two_variants(tmp_path), "1", 1)


def test_the_variant_whose_graph_is_fastest_answers(tmp_path, monkeypatch):
    """Plain, fp32 is the slower one; recorded, the other one is."""
    folder = make_two_variants(tmp_path, fp32_repeats=2000)
    asked = []

    class Bound:
        def __init__(self, file, session):
            self.file, self.session = file, session

        def run(self, images_NHWC):
            asked.append(self.file.name)
            time.sleep(0.05 * ("int8" in self.file.name))
            return np.full((len(images_NHWC), 6), 1 / 6, np.float32)

    monkeypatch.setattr(classifier, "bind_on_cuda", lambda file, session, *_: Bound(file, session))
    monkeypatch.setattr(Classifier, "_open_sessions", lambda self, precision, requires: (CUDA, opened(self), ()))

    def opened(self):
        return {variant.precision: self._open(variant, CPU) for variant in self.manifest.offered}

    chosen = Classifier(folder, "1", 1)
    assert chosen.identity.precision == "fp32"
    assert {"model.onnx", "model.int8.onnx"} <= set(asked)
    asked.clear()
    chosen.classify(draw(2))
    assert asked == ["model.onnx"]
