import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

from model_code.errors import UsageError
from model_code.models import networks
from model_code.models.networks import NETWORKS, build_network, check_image_size

FOLDER = Path(networks.__file__).parent
# Parameters of the largest network that is run here for real.
SMALL = 20_000_000
RESNETS = [name for name in NETWORKS if name.startswith("resnet18")]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that share busy cores wait for each other; one is the fastest for images this small."""
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


def skip_nothing(network):
    """Switch drop-path off; BatchNorm must see its batch, so not the whole network is put into evaluation mode."""
    for layer in network.modules():
        if isinstance(layer, StochasticDepth):
            layer.eval()
    return network


def read_documented_size(name):
    """Return the parameters and classes of `1,972,792 parameters with 10 classes` in a network's docstring."""
    [function] = [
        node
        for file in FOLDER.glob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    [(parameters, classes)] = re.findall(r"([0-9,]+) parameters with (\d+)\s+classes", ast.get_docstring(function))
    return int(parameters.replace(",", "")), int(classes)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_those_documented(name):
    documented, classes = read_documented_size(name)
    with torch.device("meta"):
        network = build_network(name, classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == documented
    assert network.training


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("image_size", [None, 64])
def test_every_network_gives_logits(name, image_size):
    with torch.device("meta"):
        network = build_network(name, 7, image_size)
        logits = network(torch.empty(2, 3, *2 * [image_size or getattr(network, "image_size", 64)]))
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in NETWORKS if read_documented_size(name)[0] < SMALL])
def test_outputs_are_finite_and_every_parameter_has_a_gradient(name):
    torch.manual_seed(0)
    network = skip_nothing(build_network(name, 10, image_size=32))
    logits = network(draw(3))
    assert logits.isfinite().all()
    nn.functional.cross_entropy(logits, torch.tensor([1, 5, 9])).backward()
    without = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []
    assert all(value.grad.isfinite().all() for value in network.parameters())


@pytest.mark.parametrize("name", RESNETS)
def test_number_of_classes_changes_the_last_layer_only(name):
    ten, three = build_network(name, 10).state_dict(), build_network(name, 3).state_dict()
    assert {key for key in ten if ten[key].shape != three[key].shape} == {"fc.weight", "fc.bias"}
    assert three["fc.weight"].shape == (3, 512)


@pytest.mark.parametrize("name", RESNETS)
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


@pytest.mark.parametrize(
    ("our_name", "their_name"),
    [("resnet18_fan_out", "resnet18_torchvision"), ("resnet18", "resnet18_torchvision_default")],
)
def test_our_resnet18_is_torchvisions(our_name, their_name):
    torch.manual_seed(0)
    ours, theirs = build_network(our_name, 10), build_network(their_name, 10)
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


def is_as_drawn(weights, std, bound):
    """Whether weights have a standard deviation and, if they are uniform, reach a bound and not beyond."""
    largest = float(weights.detach().abs().max())
    has_bound = bound is None or 0.98 * bound < largest <= bound
    return has_bound and float(weights.detach().std()) == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize(
    ("name", "is_fan_out"),
    [
        ("resnet18", False),
        ("resnet18_torchvision_default", False),
        ("resnet18_fan_out", True),
        ("resnet18_torchvision", True),
    ],
)
def test_the_initialisation_is_what_the_name_says_in_both_implementations(name, is_fan_out):
    torch.manual_seed(0)
    network = build_network(name, 10)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out, fan_in = layer.weight[:, 0].numel(), layer.weight[0].numel()
            bound = None if is_fan_out else fan_in**-0.5
            assert is_as_drawn(layer.weight, (2 / fan_out) ** 0.5 if bound is None else bound / 3**0.5, bound)
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()
    assert is_as_drawn(network.fc.weight, 512**-0.5 / 3**0.5, 512**-0.5)


def use_adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def use_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make_optimizer"),
    [("resnet50", use_adam), ("vit_b_16", use_sgd), ("swin_t", use_sgd), ("swin_t_torchvision", use_sgd)],
)
def test_a_large_network_learns_eight_small_images_by_heart(name, make_optimizer):
    torch.manual_seed(0)
    network = skip_nothing(build_network(name, 10, image_size=32).train())
    optimizer = make_optimizer(network.parameters())
    losses = []
    for step in range(4):
        loss = nn.functional.cross_entropy(network(draw(8)), torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        if step == 1:  # not at once: the head of a ViT starts at 0 and lets nothing through
            assert [key for key, value in network.named_parameters() if not value.grad.any()] == []
        optimizer.step()
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize("name", ["resnet101", "swin_s", "swin_s_torchvision"])
def test_outputs_of_a_deep_network_are_finite_and_every_parameter_has_a_gradient(name):
    torch.manual_seed(0)
    network = skip_nothing(build_network(name, 10, image_size=32).train())
    logits = network(draw(2))
    assert logits.isfinite().all()
    nn.functional.cross_entropy(logits, torch.tensor([1, 9])).backward()
    assert [key for key, value in network.named_parameters() if not value.grad.any()] == []
    assert all(value.grad.isfinite().all() for value in network.parameters())


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet18", [8, 4, 2, 1]),
        ("resnet18_improved", [16, 8, 4, 2]),
        ("resnet18_improved_nopool", [32, 16, 8, 4]),
    ],
)
def test_feature_sizes_of_a_32_pixel_image(name, sizes):
    network = build_network(name, 10).eval()
    seen = []
    for stage in network.stages[1::2]:
        stage.register_forward_hook(lambda _module, _inputs, features: seen.append(tuple(features.shape)))
    with torch.no_grad():
        network(draw(1))
    assert seen == [(1, width, size, size) for width, size in zip((64, 128, 256, 512), sizes, strict=True)]


@pytest.mark.parametrize(("name", "macs"), [("resnet18_improved", 140e6), ("resnet18_improved_nopool", 555e6)])
def test_multiply_accumulates_per_image(name, macs):
    network = build_network(name, 10).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(draw(1))
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=0.02)


def test_unknown_network_names_those_that_exist():
    with pytest.raises(UsageError) as caught:
        build_network("resnet19", 10)
    assert str(caught.value) == f"no network 'resnet19'; choose one of {', '.join(NETWORKS)}"


@pytest.mark.parametrize(
    ("name", "smallest", "refused", "message"),
    [
        ("resnet18_improved", 8, 7, "7 pixels; 8 and more are allowed, the nearest is 8"),
        ("resnet50", 8, 0, "0 pixels; 8 and more are allowed, the nearest is 8"),
        ("swin_cifar", 2, 1, "1 pixels; 2 and more are allowed, the nearest is 2"),
        ("swin_t", 4, 3, "3 pixels; 4 and more are allowed, the nearest is 4"),
        ("swin_t_torchvision", 4, -8, "-8 pixels; 4 and more are allowed, the nearest is 4"),
        ("vit_b_16", 16, 30, "30 pixels; multiples of 16 from 16 are allowed, the nearest is 32"),
        ("vit_l_16", 16, 8, "8 pixels; multiples of 16 from 16 are allowed, the nearest is 16"),
    ],
)
def test_images_that_a_network_cannot_read_are_refused(name, smallest, refused, message):
    for act in (check_image_size, lambda name, size: build_network(name, 3, size)):
        with pytest.raises(UsageError) as caught:
            act(name, refused)
        assert str(caught.value) == f"{name} cannot read images of {message}"
    with torch.device("meta"):
        network = build_network(name, 3, image_size=smallest)
        assert network(torch.empty(2, 3, smallest, smallest)).shape == (2, 3)


@pytest.mark.parametrize(("name", "image_size"), [("swin_cifar", 31), ("swin_t", 30), ("swin_s_torchvision", 33)])
def test_a_swin_reads_sizes_that_do_not_halve_evenly(name, image_size):
    with torch.device("meta"):
        network = build_network(name, 3, image_size=image_size)
        assert network(torch.empty(1, 3, image_size, image_size)).shape == (1, 3)


def test_an_image_size_reaches_the_networks_that_are_built_for_one():
    with torch.device("meta"):
        assert [build_network("swin_t", 3, size).image_size for size in (None, 64)] == [224, 64]
        assert [build_network("vit_b_16", 3, size).seq_length for size in (None, 64)] == [197, 17]
        assert build_network("resnet18", 3, 64)(torch.empty(2, 3, 32, 32)).shape == (2, 3)


def test_an_image_size_of_an_unknown_network():
    with pytest.raises(UsageError, match="no network 'resnet19'"):
        check_image_size("resnet19", 32)


def test_listing_networks_does_not_import_torch():
    code = "import sys, model_code.models.networks; print(sorted({'torch', 'torchvision', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
