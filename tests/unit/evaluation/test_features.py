import pytest
import torch
from torch import nn

from model_code.evaluation.features import LabelledFeatures, compute_features, feature_std

pytestmark = pytest.mark.usefixtures("one_thread")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_features_spread_evenly_have_the_healthy_std():
    features = torch.randn((4000, 64), generator=generator())
    assert feature_std(features) == pytest.approx(64**-0.5, rel=0.01)


def test_scale_does_not_matter():
    features = torch.randn((50, 8), generator=generator())
    scales = torch.rand((50, 1), generator=generator()) + 0.1
    assert feature_std(features * scales) == pytest.approx(feature_std(features))


def test_collapsed_features_have_none():
    assert feature_std(torch.randn((1, 8), generator=generator()).expand(20, -1)) == pytest.approx(0, abs=1e-6)


def test_std_by_hand():
    # Normalised rows (1, 0), (0, 1): each dimension holds 1 and 0, whose standard deviation is sqrt(1/2).
    assert feature_std(torch.tensor([[3.0, 0.0], [0.0, 5.0]])) == pytest.approx(0.5**0.5)


def test_one_image_has_no_spread():
    with pytest.raises(ValueError, match="at least 2"):
        feature_std(torch.ones(1, 4))


def test_every_image_gets_features_in_evaluation_mode():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9))
    images = torch.arange(7 * 12, dtype=torch.uint8).view(7, 2, 2, 3)
    features = compute_features(model, images, prepare=lambda batch: batch.float(), batch_size=3)
    assert torch.equal(features, images.flatten(1).float())


def test_lengths_must_match():
    with pytest.raises(ValueError, match="3 features for 2 labels"):
        LabelledFeatures(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), ("a",))
