"""The SimSiam network.

Shape suffixes: B = images, C = channels, H = height, W = width.
"""

import pytest
import torch
from torch import nn

from model_code.models.resnet18 import ResNet18
from model_code.models.simsiam import SimSiam

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_backbone() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16))


def draw_batch(count: int = 8) -> torch.Tensor:
    return torch.randn((count, 3, 2, 2), generator=torch.Generator().manual_seed(0))


def kinds(layers: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in layers]


@pytest.mark.parametrize("layers", [2, 3])
def test_batch_norm_stands_where_the_paper_puts_it(layers):
    network = SimSiam(tiny_backbone(), 16, projector_layers=layers)
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds(network.projector) == hidden * (layers - 1) + ["Linear", "BatchNorm1d"]
    assert kinds(network.predictor) == [*hidden, "Linear"]
    assert network.projector[-1].affine is False
    linear = [layer for layer in network.projector if isinstance(layer, nn.Linear)]
    assert all(layer.bias is None for layer in linear)
    assert [layer.out_features for layer in linear] == [2048] * layers
    assert network.predictor[0].bias is None
    assert network.predictor[-1].bias is not None
    assert [network.predictor[0].weight.shape, network.predictor[-1].weight.shape] == [(512, 2048), (2048, 512)]


def test_shapes_and_every_parameter_gets_a_gradient():
    network = SimSiam(tiny_backbone(), 16, 3, embedding_width=24, bottleneck_width=6)
    projections_BD, predictions_BD = network(draw_batch())
    assert projections_BD.shape == predictions_BD.shape == (8, 24)
    predictions_BD.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_projections_are_normalised_over_the_batch():
    projections_BD = SimSiam(tiny_backbone(), 16, embedding_width=24)(draw_batch(64)).projections_BD
    torch.testing.assert_close(projections_BD.mean(0), torch.zeros(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(projections_BD.var(0, unbiased=False), torch.ones(24), atol=0.01, rtol=0)


def test_a_projector_needs_a_layer():
    with pytest.raises(ValueError, match="projector of 0 layers"):
        SimSiam(tiny_backbone(), 16, projector_layers=0)


def test_features_are_what_the_last_layer_reads():
    network = ResNet18(7, stem="3x3").eval()
    images = torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = network.features(images)
        assert features.shape == (2, 512)
        assert torch.equal(network.fc(features), network(images))
