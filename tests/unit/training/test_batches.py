import threading

import pytest
import torch

from model_code.training.batches import iterate_batches
from model_code.training.processes import ALONE
from model_code.training.supervised import fit
from tests.unit.training.small_runs import CPU, make_config, make_images

IMAGES_NHWC = torch.randint(0, 256, (23, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ORDER_N = torch.randperm(23, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("is_ahead", [False, True])
@pytest.mark.parametrize(("first", "expected"), [(0, 4), (3, 1), (4, 0)])
def test_every_batch_comes_once_in_order(is_ahead, first, expected):
    batches = list(iterate_batches(IMAGES_NHWC, ORDER_N, 5, CPU, first=first, is_ahead=is_ahead))
    assert len(batches) == expected
    for index, (chosen_B, images_BHWC) in enumerate(batches, start=first):
        assert chosen_B.tolist() == ORDER_N[5 * index : 5 * index + 5].tolist()
        assert torch.equal(images_BHWC, IMAGES_NHWC[chosen_B])


def test_the_order_of_a_streamed_epoch_is_copied_to_the_host_once(monkeypatch):
    copied, real = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copied.append(tensor.shape) or real(tensor))
    assert len(list(iterate_batches(IMAGES_NHWC, ORDER_N, 5, CPU, is_ahead=True))) == 4
    assert copied == [ORDER_N.shape]


def test_streaming_works_ahead_by_one_batch_and_ends_when_the_caller_does():
    batches = iterate_batches(IMAGES_NHWC, ORDER_N, 5, CPU, is_ahead=True)
    next(batches)
    assert any(thread.name.startswith("next-batch") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("next-batch") for thread in threading.enumerate())


def test_streamed_images_give_the_same_weights(tmp_path):
    for place in ("resident", "streamed"):
        fit(make_config(engine={"pictures": place}), make_images(), tmp_path / place, ALONE)
    resident, streamed = ((tmp_path / place / "last.safetensors").read_bytes() for place in ("resident", "streamed"))
    assert resident == streamed
