import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model_code.errors import UsageError
from model_code.models.networks import NETWORKS, build_network
from model_code.models.resnet18 import ResNet18, resnet18_torchvision

PARAMETERS = {
    "resnet18_torchvision": 11_181_642,
    "resnet18": 11_181_642,
    "resnet18_improved": 11_173_962,
    "resnet18_improved_nopool": 11_173_962,
}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that share busy cores wait for each other; one is the fastest for pictures this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(count, seed=0):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def as_torchvision_name(name):
    """Return what torchvision calls a parameter or buffer of our ResNet-18."""
    if name.startswith("stages."):
        _, index, rest = name.split(".", 2)
        return f"layer{int(index) // 2 + 1}.{int(index) % 2}.{rest.replace('shortcut', 'downsample')}"
    return name.replace("stem.0", "conv1").replace("stem.1", "bn1")


def test_the_networks_are_those_whose_parameters_are_pinned_here():
    from tests.unit.models.test_swin import PARAMETERS as SWIN_PARAMETERS

    assert set(NETWORKS) == set(PARAMETERS) | {name for name, _ in SWIN_PARAMETERS}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_outputs_and_gradients(name):
    torch.manual_seed(0)
    network = build_network(name, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
    assert network.training
    logits = network(draw(3))
    assert logits.shape == (3, 10)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    nn.functional.cross_entropy(logits, torch.tensor([1, 5, 9])).backward()
    without = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []
    assert all(value.grad.isfinite().all() for value in network.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_classes_changes_the_last_layer_only(name):
    ten, three = build_network(name, 10).state_dict(), build_network(name, 3).state_dict()
    assert {key for key in ten if ten[key].shape != three[key].shape} == {"fc.weight", "fc.bias"}
    assert three["fc.weight"].shape == (3, 512)


@pytest.mark.parametrize("name", PARAMETERS)
def test_one_small_batch_is_learned_by_heart(name):
    torch.manual_seed(0)
    network = build_network(name, 10)
    images, labels = draw(4), torch.tensor([0, 3, 6, 9])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 1.5
    assert losses[-1] < 0.05


def test_our_resnet18_is_torchvisions():
    torch.manual_seed(0)
    ours, theirs = ResNet18(10), resnet18_torchvision(10)
    with torch.no_grad():
        for key, value in ours.state_dict().items():
            if key.endswith(("running_mean", "running_var", "bn1.bias", "bn2.weight")):
                value.uniform_(0.5, 1.5)
    theirs.load_state_dict({as_torchvision_name(key): value.clone() for key, value in ours.state_dict().items()})
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        with torch.no_grad():
            torch.testing.assert_close(ours(draw(4)), theirs(draw(4)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet18", [8, 4, 2, 1]),
        ("resnet18_improved", [16, 8, 4, 2]),
        ("resnet18_improved_nopool", [32, 16, 8, 4]),
    ],
)
def test_feature_sizes_of_a_32_pixel_picture(name, sizes):
    network = build_network(name, 10).eval()
    seen = []
    for stage in network.stages[1::2]:
        stage.register_forward_hook(lambda _module, _inputs, features: seen.append(tuple(features.shape)))
    with torch.no_grad():
        network(draw(1))
    assert seen == [(1, width, size, size) for width, size in zip((64, 128, 256, 512), sizes, strict=True)]


@pytest.mark.parametrize(("name", "macs"), [("resnet18_improved", 140e6), ("resnet18_improved_nopool", 555e6)])
def test_multiply_accumulates_per_picture(name, macs):
    network = build_network(name, 10).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(draw(1))
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=0.02)


def test_unknown_network_names_those_that_exist():
    with pytest.raises(UsageError) as caught:
        build_network("resnet19", 10)
    assert str(caught.value) == f"no network 'resnet19'; choose one of {', '.join(NETWORKS)}"


def test_listing_networks_does_not_import_torch():
    code = "import sys, model_code.models.networks; print(sorted({'torch', 'torchvision', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
