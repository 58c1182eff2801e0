import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from model_code.models.image_input import ImageInput
from model_code.models.networks import build_network
from model_code.release.onnx_export import export_onnx
from serving.bundle.session import INPUT_NAME, OUTPUT_NAME

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def keep_two_blocks(network):
    """Shorten the longest part, so that the graph has every kind of operation and is exported in seconds."""
    if hasattr(network, "encoder"):
        network.encoder.layers = network.encoder.layers[:2]
    elif hasattr(network, "features"):
        network.features[5] = network.features[5][:2]
    else:
        network.layer3 = network.layer3[:2]
    return network


def test_an_untrained_vit_answers_the_same_to_every_image():
    network = build_network("vit_b_16", 10, image_size=16).eval()
    with torch.no_grad():
        logits = network(torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(0)))
    assert not logits.any()


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "swin_t_torchvision", "efficientnet_b0"])
def test_onnx_answers_what_torch_answers(name, tmp_path):
    torch.manual_seed(0)
    network = keep_two_blocks(build_network(name, 10, image_size=32))
    if name == "vit_b_16":
        nn.init.normal_(network.heads.head.weight, std=0.1)
    if name == "efficientnet_b0":  # whose outputs vanish until BatchNorm has seen some images
        for norm in (one for one in network.modules() if isinstance(one, nn.BatchNorm2d)):
            norm.momentum = None
        network(torch.randn((16, 3, 32, 32), generator=torch.Generator().manual_seed(0)))
    model, file = nn.Sequential(ImageInput((0.5,) * 3, (0.5,) * 3), network).eval(), tmp_path / "model.onnx"
    export_onnx(model, 32, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    file.unlink()
    for batch_size in (1, 3):
        generator = torch.Generator().manual_seed(batch_size)
        images = torch.randint(0, 256, (batch_size, 32, 32, 3), dtype=torch.uint8, generator=generator)
        with torch.no_grad():
            expected = model(images).softmax(dim=1).numpy()
        [answer] = session.run([OUTPUT_NAME], {INPUT_NAME: images.numpy()})
        assert answer.shape == (batch_size, 10)
        assert np.ptp(expected, axis=1).min() > 0.05
        assert np.abs(answer - expected).max() < 1e-5
