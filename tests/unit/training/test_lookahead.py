import pytest
import torch
from torch import nn

from model_code.training.lookahead import Lookahead

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 23


def move(model, step):
    """What an optimiser does to weights, and a forward pass to running statistics."""
    for number, tensor in enumerate(model.state_dict().values()):
        generator = torch.Generator().manual_seed(100 * step + number)
        tensor.add_(torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else 1)


def test_weights_are_those_of_the_definition_written_out():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    other.load_state_dict(model.state_dict())
    lookahead = Lookahead(model, STEPS)
    slow = {name: value.clone() for name, value in other.state_dict().items() if value.is_floating_point()}
    for step in range(1, STEPS + 1):
        move(model, step)
        lookahead.end_step(step)
        move(other, step)
        decays = []
        if step % 5 == 0:
            decays.append(0.95**5 * (step / STEPS) ** 3)
        if step == STEPS:
            decays.append(1.0)
        for decay in decays:
            for name, value in other.state_dict().items():
                if name in slow:
                    slow[name] = decay * slow[name] + (1 - decay) * value
                    value.copy_(slow[name])
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name])
    torch.testing.assert_close(model[0].weight.data, slow["0.weight"])


def test_a_state_that_was_saved_goes_on_the_same(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    lookahead = Lookahead(model, STEPS)
    for step in range(1, 8):
        move(model, step)
        lookahead.end_step(step)
    torch.save(lookahead.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(model.state_dict())
    resumed = Lookahead(other, STEPS)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(8, STEPS + 1):
        move(model, step)
        lookahead.end_step(step)
        move(other, step)
        resumed.end_step(step)
    assert torch.equal(model.weight, other.weight)
