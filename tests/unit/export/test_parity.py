import copy
import json
import math

import pytest
import torch

from model_code.errors import ReleaseError
from model_code.export.onnx_export import export_onnx
from model_code.export.parity import BATCH_SIZES, BatchParity, Parity, measure_parity
from model_code.models.picture_input import PictureInput
from model_code.training.supervised import build_model
from tests.unit.training.small_runs import draw_pictures, make_config

COUNT = 70


@pytest.fixture(scope="module")
def pictures():
    return draw_pictures(COUNT)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(make_config(), 4, 8).eval()


@pytest.fixture(scope="module")
def compare(tmp_path_factory, pictures):
    """Export one model, each once, and measure it against another."""
    files = {}

    def run(exported, trained):
        if exported not in files:
            files[exported] = tmp_path_factory.mktemp("export") / "model.onnx"
            export_onnx(exported, 8, files[exported])
        return measure_parity(trained, files[exported], "test", pictures.images_NHWC, pictures.labels_N)

    return run


def make_parity(**differences):
    """A parity that is perfect but for one batch size."""
    batches = {size: BatchParity(max_difference=0.0, top1_agreement=1.0) for size in BATCH_SIZES}
    batches[7] = BatchParity(**({"max_difference": 0.0, "top1_agreement": 1.0} | differences))
    return Parity("test", 10_000, "CPUExecutionProvider", 0.9, 0.9, batches)


def test_a_model_equals_its_own_export(compare, model, pictures):
    parity = compare(model, model)
    parity.check()
    assert set(parity.batches) == {1, 7, 64}
    for batch in parity.batches.values():
        assert batch.max_difference < 1e-5
        assert batch.top1_agreement == 1.0
    with torch.no_grad():
        right = (model(pictures.images_NHWC).argmax(1) == pictures.labels_N).float().mean()
    assert parity.torch_accuracy == parity.onnx_accuracy == pytest.approx(float(right))
    assert (parity.split, parity.count, parity.provider) == ("test", COUNT, "CPUExecutionProvider")


def test_the_record_is_plain_json(compare, model):
    parity = compare(model, model)
    record = json.loads(json.dumps(parity.to_dict(), allow_nan=False))
    assert record["batches"]["64"]["max_difference"] == parity.batches[64].max_difference
    assert record["count"] == COUNT


def test_another_normalisation_is_refused(compare, model):
    shifted = torch.nn.Sequential(PictureInput((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), model[1])
    parity = compare(shifted, model)
    assert parity.batches[1].max_difference > 1e-3
    with pytest.raises(
        ReleaseError, match=r"not the trained one: at batch 1 .*\(allowed 0\.0001\).*nothing was released"
    ):
        parity.check()


def test_swapped_classes_are_refused(compare, model):
    swapped = copy.deepcopy(model)
    with torch.no_grad():
        swapped[1].fc.weight.copy_(model[1].fc.weight[[1, 0, 2, 3]])
        swapped[1].fc.bias.copy_(model[1].fc.bias[[1, 0, 2, 3]])
    parity = compare(swapped, model)
    assert parity.batches[64].top1_agreement < 1
    with pytest.raises(ReleaseError, match="not the trained one"):
        parity.check()


@pytest.fixture(scope="module")
def broken(model):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[1].fc.bias.fill_(torch.nan)
    return broken


@pytest.mark.parametrize("is_broken", [(True, False), (False, True), (True, True)], ids=["onnx", "torch", "both"])
def test_nan_is_refused(compare, model, broken, is_broken):
    parity = compare(*(broken if broken_one else model for broken_one in is_broken))
    assert all(math.isnan(batch.max_difference) for batch in parity.batches.values())
    with pytest.raises(ReleaseError, match="differ by up to nan"):
        parity.check()


def test_one_other_label_is_refused_however_small_the_difference(compare, model, pictures):
    with torch.no_grad():
        logits_K = model(pictures.images_NHWC[:1])[0]
    first, second = logits_K.topk(2).indices.tolist()
    gap = float(logits_K[first] - logits_K[second])
    before, after = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        before[1].fc.bias[second] += gap - 2e-5
        after[1].fc.bias[second] += gap + 2e-5
    parity = compare(after, before)
    for batch in parity.batches.values():
        assert batch.top1_agreement == pytest.approx((COUNT - 1) / COUNT)
        assert batch.max_difference < 1e-4
    with pytest.raises(ReleaseError, match=r"98\.5714% of 70 labels agree \(wanted 100%\)"):
        parity.check()


@pytest.mark.parametrize(
    "differences", [{"max_difference": 1.01e-4}, {"max_difference": math.nan}, {"top1_agreement": 0.9999}]
)
def test_one_batch_size_is_enough_to_refuse(differences):
    with pytest.raises(ReleaseError, match="at batch 7 "):
        make_parity(**differences).check()


def test_the_limit_itself_is_allowed():
    make_parity(max_difference=1e-4).check()
    make_parity().check()
