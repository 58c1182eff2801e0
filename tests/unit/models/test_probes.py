"""Probes and the standardisation before them.

Shape suffixes: N = images, D = features.
"""

import pytest
import torch
from torch import nn

from model_code.models.probes import Standardise, build_probe, build_untrained_head

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_linear_probe_is_drawn_from_its_generator():
    torch.manual_seed(1)
    probe = build_probe(400, 5, 0, seeded())
    assert torch.equal(probe.weight, torch.empty(5, 400).normal_(std=0.01, generator=seeded()))
    assert not probe.bias.any()


def test_an_mlp_has_one_hidden_layer_that_keeps_the_scale_of_features():
    torch.manual_seed(1)
    probe = build_probe(300, 5, 64, seeded())
    torch.manual_seed(2)
    again = build_probe(300, 5, 64, seeded())
    assert [type(layer) for layer in probe] == [nn.Linear, nn.ReLU, nn.Linear]
    assert (probe[0].weight.shape, probe[2].weight.shape) == ((64, 300), (5, 64))
    assert all(torch.equal(one, other) for one, other in zip(probe.parameters(), again.parameters(), strict=True))
    assert not probe[0].bias.any()
    assert not probe[2].bias.any()
    with torch.no_grad():
        hidden = probe[:2](torch.randn((500, 300), generator=seeded(1)))
    assert float(hidden.square().mean()) == pytest.approx(1, rel=0.1)
    assert float(probe[2].weight.detach().std()) == pytest.approx(0.01, rel=0.15)


def test_an_untrained_head_is_as_pytorch_would_draw_it():
    head, other = build_untrained_head(100, 50, seeded()), build_untrained_head(100, 50, seeded(1))
    for values in (head.weight.detach(), head.bias.detach()):
        assert 0.09 < float(values.abs().max()) <= 0.1
        assert float(values.std()) == pytest.approx(0.1 / 3**0.5, rel=0.2)
    assert not torch.equal(head.weight, other.weight)
    assert torch.equal(head.weight, build_untrained_head(100, 50, seeded()).weight)


def test_standardised_features_have_mean_0_and_variance_1():
    features_ND = torch.randn((400, 6), generator=seeded()) * 10.0 ** torch.arange(-3, 3) + 7
    standardised_ND = Standardise(features_ND)(features_ND)
    torch.testing.assert_close(standardised_ND.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(standardised_ND.var(0, correction=0), torch.ones(6), atol=1e-3, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -123456.7])
def test_constant_dimensions_become_0(value):
    features_ND = torch.randn((50, 2), generator=seeded())
    features_ND[:, 1] = value
    standardise = Standardise(features_ND)
    assert not standardise(features_ND)[:, 1].any()
    assert not standardise(features_ND + 1)[:, 1].any()
    assert standardise(features_ND)[:, 0].any()
    assert standardise(features_ND).isfinite().all()


def test_a_single_image_says_no_scale():
    assert not Standardise(torch.ones(1, 3))(torch.randn((4, 3), generator=seeded())).any()
