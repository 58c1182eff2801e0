import pytest
import torch
import torchvision
from torch import nn

from model_code.models.initialization import draw_gaussian, draw_gaussian_head
from model_code.models.networks import build_network

pytestmark = pytest.mark.usefixtures("one_thread")


def draw_images(count, side):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_all_weights_are_gaussian_and_biases_zero():
    torch.manual_seed(0)
    network = build_network("resnet18", 10)
    draw_gaussian(network)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.1), name
            assert float(parameter.detach().mean()) == pytest.approx(0, abs=0.002), name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name
    with torch.no_grad():
        assert network.eval()(draw_images(4, 32)).std() > 0


def test_a_gaussian_head_lets_an_untrained_vit_give_several_answers():
    torch.manual_seed(0)
    network = build_network("vit_b_16", 10, image_size=16).eval()
    before = network.conv_proj.weight.clone()
    draw_gaussian_head(network)
    assert torch.equal(before, network.conv_proj.weight)
    assert float(network.heads.head.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    with torch.no_grad():
        logits = network(draw_images(4, 16))
    assert logits.std() > 0
    assert not torch.allclose(logits[0], logits[1])


def test_alexnet_is_torchvisions():
    torch.manual_seed(0)
    with torch.device("meta"):
        ours, theirs = build_network("alexnet", 10), torchvision.models.AlexNet(10)
    assert isinstance(ours.head, nn.Linear)
    renamed = {name.replace("head.", "classifier.6."): value.shape for name, value in ours.state_dict().items()}
    assert renamed == {name: value.shape for name, value in theirs.state_dict().items()}
    with torch.device("meta"):
        assert ours(torch.empty(2, 3, 63, 63)).shape == (2, 10)
