import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model_code.errors import UsageError
from model_code.models.initialization import (
    WHITENING_EPSILON,
    freeze_norm_scales,
    start_as_partial_identity,
    whiten_first_convolution,
)
from model_code.models.networks import build_network

pytestmark = pytest.mark.usefixtures("one_thread")
# Side of an image, pixels, and millions of multiply-accumulates for it.
MMACS = {"fastnet": (32, 118), "fastnet_wide": (32, 302), "fastnet_strided": (64, 136)}


def draw(count, side=32):
    """Images whose neighbouring pixels and channels go together, so that whitening has something to do."""
    noise = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))
    smooth = nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
    return smooth + smooth.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("name", MMACS)
def test_multiply_accumulates_are_those_documented(name):
    side, mmac = MMACS[name]
    network = build_network(name, 10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(draw(1, side))
    assert counter.get_total_flops() / 2e6 == pytest.approx(mmac, abs=0.5)


@pytest.mark.parametrize(
    ("name", "side"), [("fastnet", 9), ("fastnet", 24), ("fastnet", 32), ("fastnet", 64), ("fastnet_strided", 17)]
)
def test_every_allowed_size_gives_logits_and_gradients(name, side):
    network = build_network(name, 7, image_size=side)
    logits = network(draw(4, side))
    assert logits.shape == (4, 7)
    logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in network.parameters())


def test_images_that_vanish_on_the_way_are_refused():
    with pytest.raises(UsageError, match="fastnet cannot read images of 8 pixels; 9 and more are allowed"):
        build_network("fastnet", 7, image_size=8)


def test_the_last_pool_is_the_sources_where_the_source_has_one():
    """At 32 pixels the last maps are 3x3: the global maximum is MaxPool2d(3)."""
    network, images = build_network("fastnet", 10).eval(), draw(2)
    maps = network.groups(nn.functional.gelu(network.whitening(images)))
    assert maps.shape[2:] == (3, 3)
    torch.testing.assert_close(network(images), network.fc(nn.MaxPool2d(3)(maps).flatten(1)) / 9)


def test_whitened_patches_are_uncorrelated_and_of_variance_one():
    network, images = build_network("fastnet", 10), draw(200)
    whiten_first_convolution(network, images)
    assert not network.whitening.bias.any()
    answers = network.whitening(images)
    half = answers.shape[1] // 2
    torch.testing.assert_close(answers[:, half:], -answers[:, :half])
    values = answers[:, :half].permute(0, 2, 3, 1).reshape(-1, half)
    moments = values.T @ values / len(values)
    off_diagonal = moments - moments.diagonal().diag()
    assert off_diagonal.abs().max() < 1e-2
    # The constant under the root takes most from the direction in which patches differ least.
    assert 1 - WHITENING_EPSILON / 1e-2 < moments.diagonal().min() <= moments.diagonal().max() < 1.001


def test_whitening_counts_every_patch_once_however_many_images_there_are():
    one, other = build_network("fastnet", 10), build_network("fastnet", 10)
    images = draw(12)
    whiten_first_convolution(one, images)
    whiten_first_convolution(other, images.repeat(60, 1, 1, 1))
    torch.testing.assert_close(one.whitening.weight.abs(), other.whitening.weight.abs(), rtol=1e-4, atol=1e-4)


def test_only_the_bias_of_the_whitening_learns():
    network = build_network("fastnet", 10)
    whiten_first_convolution(network, draw(10))
    assert (network.whitening.weight.requires_grad, network.whitening.bias.requires_grad) == (False, True)


def test_whitening_needs_a_convolution_for_it():
    with pytest.raises(UsageError, match=r"ResNet18 has none; choose --set network=fastnet, or .*whitening_images=0"):
        whiten_first_convolution(build_network("resnet18", 10), draw(2))


def test_convolutions_that_start_as_partial_identity_pass_their_input_on():
    torch.manual_seed(0)
    network = build_network("fastnet", 10)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    start_as_partial_identity(network)
    images = torch.randn(2, 24, 8, 8)
    torch.testing.assert_close(network.groups[0].conv1(images)[:, :24], images)
    images = torch.randn(2, 256, 5, 5)
    torch.testing.assert_close(network.groups[2].conv2(images), images)
    # The filters beyond the input's channels, the whitening and the other layers keep their start.
    after = network.state_dict()
    assert torch.equal(after["groups.0.conv1.weight"][24:], before["groups.0.conv1.weight"][24:])
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {f"groups.{group}.conv{index}.weight" for group in range(3) for index in (1, 2)}


def test_frozen_scales_leave_the_biases_free():
    network = build_network("fastnet", 10)
    freeze_norm_scales(network)
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"groups.{group}.norm{index}.weight" for group in range(3) for index in (1, 2)}
