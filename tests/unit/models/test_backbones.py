import pytest
import torch
from torch import nn

from model_code.errors import UsageError
from model_code.models import networks
from model_code.models.networks import NETWORKS, build_backbone, build_network

pytestmark = pytest.mark.usefixtures("one_thread")

LAST_LAYERS = {name: "fc" for name in NETWORKS if name.startswith("resnet")} | {
    "swin_cifar": "head",
    "swin_t": "head",
    "swin_t_torchvision": "head",
    "vit_b_16": "heads",
    "efficientnet_b0": "head",
}
# Of the same file and shape as one above, only larger.
del LAST_LAYERS["resnet101"]


@pytest.mark.parametrize("name", LAST_LAYERS)
def test_a_backbone_is_the_network_without_its_last_layer(name):
    torch.manual_seed(0)
    network, (backbone, feature_width) = build_network(name, 10, 32), build_backbone(name, 32)
    last_layer = network.get_submodule(LAST_LAYERS[name])
    for parameter in last_layer.parameters():
        nn.init.normal_(parameter)  # that of a ViT starts at 0
    weights = {key: value for key, value in network.state_dict().items() if not key.startswith(LAST_LAYERS[name] + ".")}
    backbone.load_state_dict(weights)
    images = torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = backbone.eval()(images)
        assert features.shape == (2, feature_width)
        torch.testing.assert_close(last_layer(features), network.eval()(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_a_backbone(name):
    with torch.device("meta"):
        backbone, feature_width = build_backbone(name, image_size=64)
        assert backbone(torch.empty(2, 3, 64, 64)).shape == (2, feature_width)


def test_an_image_size_reaches_the_backbone():
    with torch.device("meta"):
        assert build_backbone("swin_cifar")[0].image_size == 32
        assert build_backbone("swin_cifar", 64)[0].image_size == 64
    with pytest.raises(UsageError, match="vit_b_16 cannot read images of 20 pixels"):
        build_backbone("vit_b_16", 20)


@pytest.mark.parametrize(
    "network",
    [nn.Flatten(), nn.Sequential(nn.Linear(1, 1)), nn.ModuleDict({"fc": nn.Conv2d(3, 1, 1)})],
    ids=["no layer", "another name", "no linear layer"],
)
def test_a_network_without_a_last_linear_layer_is_no_backbone(network, monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "odd", lambda _num_classes: network)
    with pytest.raises(UsageError, match="odd cannot be a backbone, since it has no linear layer called fc, head or h"):
        build_backbone("odd")
