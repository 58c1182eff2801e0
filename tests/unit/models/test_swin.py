import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model_code.models.image_input import ImageInput
from model_code.models.networks import build_network
from model_code.models.swin import (
    SwinBlock,
    SwinTransformer,
    join_windows,
    mask_shifted_windows,
    partition_windows,
)
from model_code.models.swin_sizes import EnlargedSwin, swin_t
from model_code.release.onnx_export import export_onnx
from serving.bundle.session import INPUT_NAME, OUTPUT_NAME


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that share busy cores wait for each other; one is the fastest for networks this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build_small(**changes):
    """A network of two stages whose first pads a map of 10 to 12 and shifts windows of 4."""
    torch.manual_seed(0)
    settings = {"image_size": 20, "patch_size": 2, "channels": 16, "depths": (2, 2), "heads": (2, 4), "window": 4}
    return SwinTransformer(3, **(settings | {"mlp_ratio": 2} | changes))


def build_block(shift=0, **changes):
    """A block on a map of 8 in windows of 4 whose relative position bias matters."""
    torch.manual_seed(0)
    settings = {"channels": 8, "heads": 2, "map_size": 8, "window": 4, "mlp_ratio": 2, "drop_path": 0.0}
    block = SwinBlock(shift=shift, **(settings | changes))
    nn.init.normal_(block.attention.bias_table_PA)
    return block.eval()


def find_changed(block, mask, row, column):
    """Return a bool [8, 8]: the outputs that answer to a change of one token."""
    features = draw(1, 8, 8, 8)
    other = features.clone()
    other[0, row, column] += draw(8, seed=1)
    with torch.no_grad():
        difference = (block(features, mask) - block(other, mask)).abs().amax(dim=-1)[0]
    return difference > 1e-6


def as_torchvision_name(name):
    """Return what torchvision calls a parameter of our Swin Transformer."""
    for ours, theirs in (
        ("patch_embedding", "features.0.0"),
        ("patch_norm", "features.0.2"),
        (".attention.bias_table_PA", ".attn.relative_position_bias_table"),
        (".attention.", ".attn."),
        (".mlp.2.", ".mlp.3."),
        (".blocks.", "."),
    ):
        name = name.replace(ours, theirs)
    if name.startswith("layers."):
        _, index, rest = name.split(".", 2)
        name = f"features.{int(index) + 1}.{rest}"
    return name


@pytest.mark.parametrize(
    ("name", "macs"), [("swin_cifar", 1.350e9), ("swin_cifar_window4", 0.802e9), ("swin_t", 4.49e9)]
)
def test_multiply_accumulates_per_image(name, macs):
    with torch.device("meta"):
        network = build_network(name, 10).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, 3, network.image_size, network.image_size))
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=0.002)


@pytest.fixture(scope="module")
def torchvisions():
    """torchvision's Swin-T with every parameter away from 0 and 1, where a mix-up would not show."""
    torch.manual_seed(0)
    network = torchvision.models.swin_t(num_classes=10).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return network


@pytest.mark.parametrize("image_size", [224, 200])
def test_swin_t_is_torchvisions(torchvisions, image_size):
    with torch.device("meta"):
        names = list(dict(swin_t(10).named_parameters()))
    theirs = dict(torchvisions.named_parameters())
    assert sorted(map(as_torchvision_name, names)) == sorted(theirs)
    ours = swin_t(10, image_size=image_size).eval()
    ours.load_state_dict({name: theirs[as_torchvision_name(name)] for name in names})
    images = draw(1, 3, image_size, image_size)
    with torch.no_grad():
        expected = torchvisions(images)
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=0)


def test_initial_weights():
    for name, parameter in build_small(channels=32).state_dict().items():
        if name.endswith("bias_table_PA") or (name.endswith("weight") and parameter.dim() == 2):
            assert float(parameter.std()) == pytest.approx(0.02, rel=0.25), name
            assert float(parameter.abs().max()) < 0.2, name
        elif not name.startswith("patch_embedding"):
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name


def test_one_small_batch_is_learned_by_heart():
    network = build_small()
    images, labels = draw(6, 3, 20, 20), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 1
    assert losses[-1] < 0.02


def test_a_forward_pass_changes_nothing_in_the_network():
    network = build_small(drop_path=0.5)

    def list_attributes():
        return {name: {**vars(module)} for name, module in network.named_modules()}

    before = {key: value.clone() for key, value in [*network.named_parameters(), *network.named_buffers()]}
    attributes = list_attributes()
    network(draw(2, 3, 20, 20)).sum().backward()
    after = dict([*network.named_parameters(), *network.named_buffers()])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert list_attributes() == attributes


def test_masks_are_no_part_of_a_checkpoint_and_weights_fit_any_image_size():
    network = build_small()
    assert set(network.state_dict()) == set(dict(network.named_parameters()))
    build_small(image_size=32).load_state_dict(network.state_dict())


def test_drop_path_skips_branches_in_training_only_and_rises_with_depth():
    network = build_small(drop_path=0.6)
    rates = [module.drop_path.p for module in network.modules() if isinstance(module, SwinBlock)]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.6])
    images = draw(4, 3, 20, 20)
    with torch.no_grad():
        assert not torch.equal(network(images), network(images))
        network.eval()
        assert torch.equal(network(images), network(images))
        assert torch.equal(network(images), build_small(drop_path=0.0)(images))


def test_the_published_network_drops_nothing():
    network, images = build_network("swin_cifar", 10), draw(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network.train()(images), network.eval()(images))


def test_patch_norm_is_optional():
    names = dict(build_small(has_patch_norm=False).named_parameters())
    assert not any(name.startswith("patch_norm") for name in names)
    assert set(names) < set(dict(build_small().named_parameters()))


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="images of 24x20 pixels, but this network was built for 20x20"):
        build_small()(draw(1, 3, 24, 20))


def test_windows_are_squares_of_the_map_row_by_row():
    features = torch.arange(36.0).reshape(1, 6, 6, 1)
    windows = partition_windows(features, 3)
    assert windows[0, 1, :, 0].tolist() == [3, 4, 5, 9, 10, 11, 15, 16, 17]
    assert torch.equal(join_windows(windows, 6, 3), features)


def test_without_a_shift_a_token_reaches_its_own_window_only():
    changed = find_changed(build_block(), None, row=5, column=2)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[4:8, 0:4] = True
    assert torch.equal(changed, expected)


def test_a_shifted_window_that_wraps_around_keeps_the_edges_of_the_map_apart():
    block, mask = build_block(shift=2), mask_shifted_windows(8, 4, 2)
    corner = torch.zeros(8, 8, dtype=torch.bool)
    corner[0:2, 0:2] = True
    middle = torch.zeros(8, 8, dtype=torch.bool)
    middle[2:6, 2:6] = True
    assert torch.equal(find_changed(block, mask, row=0, column=0), corner)
    assert torch.equal(find_changed(block, mask, row=3, column=5), middle)
    assert find_changed(block, None, row=0, column=0).sum() == 16


def test_shift_only_where_the_map_has_more_than_one_window():
    stages = build_network("swin_cifar", 10).layers[::2]
    assert [[block.shift for block in stage.blocks] for stage in stages] == [[0, 3], [0, 3] * 3, [0, 0]]
    assert [None if stage.mask_NTT is None else len(stage.mask_NTT) for stage in stages] == [9, 4, None]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(model, session of its export) for swin_cifar with a head that tells images apart"""
    torch.manual_seed(0)
    model = nn.Sequential(ImageInput((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), build_network("swin_cifar", 10)).eval()
    with torch.no_grad():
        model[1].head.weight.mul_(20)
    file = tmp_path_factory.mktemp("swin") / "model.onnx"
    export_onnx(model, 32, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    file.unlink()
    return model, session


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3])
def test_onnx_answers_what_torch_answers(exported, batch_size):
    model, session = exported
    generator = torch.Generator().manual_seed(batch_size)
    images = torch.randint(0, 256, (batch_size, 32, 32, 3), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        expected = model(images).softmax(dim=1).numpy()
    [answer] = session.run([OUTPUT_NAME], {INPUT_NAME: images.numpy()})
    assert answer.shape == (batch_size, 10)
    assert np.ptp(expected, axis=1).min() > 0.05
    assert np.abs(answer - expected).max() < 1e-5


@pytest.mark.slow
def test_an_enlarged_swin_sees_its_images_at_its_own_size(tmp_path):
    torch.manual_seed(0)
    sizes = {"image_size": 64, "patch_size": 4, "channels": 8, "depths": (2,), "heads": (2,), "window": 7}
    enlarged, plain = EnlargedSwin(3, **sizes).eval(), SwinTransformer(3, **sizes).eval()
    plain.load_state_dict(enlarged.state_dict())
    images_BHWC = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    images_BCHW = images_BHWC.permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        larger_BCHW = nn.functional.interpolate(images_BCHW, (64, 64), mode="bilinear")
        assert torch.equal(enlarged(images_BCHW), plain(larger_BCHW))
    model, file = nn.Sequential(ImageInput((0.0,) * 3, (1.0,) * 3), enlarged).eval(), tmp_path / "model.onnx"
    export_onnx(model, 16, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    [answer] = session.run([OUTPUT_NAME], {INPUT_NAME: images_BHWC.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(answer), model(images_BHWC).softmax(dim=1), atol=1e-5, rtol=0)
