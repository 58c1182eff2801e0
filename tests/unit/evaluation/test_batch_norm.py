"""Calibrated BatchNorm statistics, by hand.

Shape suffixes: N = images, H = height, W = width, C = channels.
"""

import copy

import pytest
import torch
from torch import nn

from model_code.errors import UsageError
from model_code.evaluation.batch_norm import calibrate_batch_norm

pytestmark = pytest.mark.usefixtures("one_thread")


class Channels(nn.Module):
    def forward(self, images_BHWC):
        return images_BHWC.permute(0, 3, 1, 2).float()


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        Channels(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten()
    )


def draw(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 4, 4, 3), dtype=torch.uint8, generator=generator)


def test_one_batch_gives_the_statistics_of_the_images():
    model, images_NHWC = make_model(), draw(40)
    calibrate_batch_norm(model, images_NHWC, batch_size=40)
    pixels = images_NHWC.float().flatten(0, 2)
    torch.testing.assert_close(model[1].running_mean, pixels.mean(0))
    torch.testing.assert_close(model[1].running_var, pixels.var(0))
    hidden = model[:3](images_NHWC).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(model[3].running_mean, hidden.mean(0), atol=1e-4, rtol=1e-4)


def test_batches_weigh_the_same_whatever_their_order_and_the_last_ones_size():
    model, images_NHWC = make_model(), draw(41)
    images_NHWC = images_NHWC[images_NHWC.float().mean(dim=(1, 2, 3)).argsort()]  # as where classes lie in blocks
    calibrate_batch_norm(model, images_NHWC, batch_size=10)
    assert int(model[1].num_batches_tracked) == 5
    pixels = images_NHWC.float().flatten(0, 2)
    torch.testing.assert_close(model[1].running_mean, pixels.mean(0), atol=0.5, rtol=0)
    torch.testing.assert_close(model[1].running_var, pixels.var(0), atol=0, rtol=0.02)


def test_earlier_statistics_do_not_count_and_weights_stay():
    model, images_NHWC = make_model(), draw(30)
    other = copy.deepcopy(model)
    other.train()(draw(20, seed=1))
    before = copy.deepcopy(dict(other.named_parameters()))
    for network in (model, other):
        calibrate_batch_norm(network, images_NHWC, batch_size=7)
        assert not any(module.training for module in network.modules())
        assert [network[1].momentum, network[3].momentum] == [0.1, 0.1]
    assert all(torch.equal(one, two) for one, two in zip(model.buffers(), other.buffers(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in other.named_parameters())


def test_images_are_prepared():
    model, images_NHWC = make_model(), draw(12)
    calibrate_batch_norm(model, images_NHWC, prepare=lambda batch: batch // 2, batch_size=12)
    torch.testing.assert_close(model[1].running_mean, (images_NHWC // 2).float().mean(dim=(0, 1, 2)))


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_no_batch_has_a_single_image(count):
    sizes = []
    model = nn.Sequential(Channels(), nn.Flatten(), nn.BatchNorm1d(48))
    model[2].register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    calibrate_batch_norm(model, draw(count), batch_size=2)
    assert min(sizes) >= 2
    assert sum(sizes) == count


def test_a_failure_leaves_evaluation_mode_and_momentum():
    model = make_model()

    def fail(_images):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        calibrate_batch_norm(model, draw(4), fail)
    assert (model[1].momentum, model.training, model[1].training) == (0.1, False, False)


def test_a_network_without_batch_norm_stays_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))  # reads no uint8: would fail if it were asked
    calibrate_batch_norm(model, draw(4))
    assert not model.training


@pytest.mark.parametrize(("count", "batch_size"), [(1, 8), (0, 8), (8, 1)])
def test_too_few_images(count, batch_size):
    with pytest.raises(UsageError, match=f"on {count} images in batches of {batch_size}; give at least 2"):
        calibrate_batch_norm(make_model(), draw(count), batch_size=batch_size)
