import pytest
import torch

from model_code.models.simsiam import Embeddings
from model_code.training.losses import negative_cosine_loss, simsiam_loss


def noise(seed: int, *, grad: bool = True) -> torch.Tensor:
    return torch.randn((16, 8), generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


def test_agreement_is_minus_one_opposition_one_and_right_angles_zero():
    rows = noise(0, grad=False)
    assert float(negative_cosine_loss(rows, 3 * rows)) == pytest.approx(-1)
    assert float(negative_cosine_loss(rows, -rows)) == pytest.approx(1)
    assert float(negative_cosine_loss(torch.eye(4), torch.eye(4).flip(0))) == 0


def test_loss_by_hand():
    # Cosines 0.6 and 0, whose mean is 0.3.
    predictions, targets = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[5.0, 0.0], [1.0, 0.0]])
    assert float(negative_cosine_loss(predictions, targets)) == pytest.approx(-0.3)


def test_the_gradient_stops_at_the_targets():
    predictions, targets = noise(0), noise(1)
    negative_cosine_loss(predictions, targets).backward()
    assert predictions.grad is not None
    assert predictions.grad.abs().sum() > 0
    assert targets.grad is None


def test_symmetric_loss_is_the_mean_of_both_directions_and_stops_both_gradients():
    first, second = Embeddings(noise(0), noise(1)), Embeddings(noise(2), noise(3))
    loss = simsiam_loss(first, second)
    one_way = negative_cosine_loss(first.predictions_BD, second.projections_BD)
    other_way = negative_cosine_loss(second.predictions_BD, first.projections_BD)
    assert float(loss.detach()) == pytest.approx(float((one_way + other_way).detach()) / 2)
    loss.backward()
    for view in (first, second):
        assert view.projections_BD.grad is None
        assert view.predictions_BD.grad is not None


def test_half_precision_is_widened():
    rows = noise(0, grad=False).bfloat16()
    loss = negative_cosine_loss(rows, rows)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(-1)


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"\(16, 8\) and targets \(16, 4\)"):
        negative_cosine_loss(noise(0), noise(1)[:, :4])
