import os
import pickle
import re
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from model_code.errors import TrainingError
from model_code.models.networks import build_network
from model_code.training.checkpoints import (
    TrainingState,
    best_file,
    hash_pretrained,
    is_of_another_version,
    load_pretrained,
    load_state,
    load_weights,
    save_state,
    save_weights,
)
from model_code.training.processes import ALONE
from model_code.training.run_folder import STATE_FILE
from model_code.training.supervised import fit
from tests.unit.training.small_runs import TinyNetwork, make_config, make_images

SHA256 = "a" * 64


class MakesFolder:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_another_file_of_pretrained_weights_is_another_hash(tmp_path):
    file = tmp_path / "w.pth"
    file.write_bytes(b"first")
    first = hash_pretrained(str(file))
    file.write_bytes(b"second")
    assert hash_pretrained(str(file)) != first
    assert hash_pretrained(None) is None
    assert hash_pretrained("torchvision") is None
    with pytest.raises(TrainingError, match="no such file"):
        hash_pretrained(str(tmp_path / "missing.pth"))


@pytest.fixture
def state():
    network = TinyNetwork(4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    return TrainingState(
        config_sha256=SHA256,
        epoch=2,
        best_epoch=1,
        network=network.state_dict(),
        optimizer=optimizer.state_dict(),
        average=None,
        schedule=scheduler.state_dict(),
        generator=torch.Generator().manual_seed(3).get_state(),
        torch_rng=torch.get_rng_state(),
        history=[{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.25}],
    )


def get_only_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_state_comes_back_as_it_was(tmp_path, state):
    assert load_state(tmp_path, SHA256) is None
    save_state(tmp_path, state)
    loaded = load_state(tmp_path, SHA256)
    assert (loaded.epoch, loaded.best_epoch, loaded.history) == (2, 1, state.history)
    assert torch.equal(loaded.generator, state.generator)
    assert torch.equal(loaded.torch_rng, state.torch_rng)
    assert all(torch.equal(value, state.network[key]) for key, value in loaded.network.items())
    assert loaded.optimizer == state.optimizer


def test_state_of_a_real_run_needs_no_code_to_load(tmp_path):
    config = make_config(epochs=1)
    fit(config, make_images(), tmp_path, ALONE)
    content = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert set(content) == set(TrainingState.__dataclass_fields__)
    assert (content["epoch"], content["config_sha256"]) == (1, config.sha256())
    assert set(content["optimizer"]["state"][0]) == {"momentum_buffer"}


def test_state_of_another_config(tmp_path, state):
    save_state(tmp_path, state)
    with pytest.raises(TrainingError, match=rf"{STATE_FILE} belongs to a run with other settings; start a new run"):
        load_state(tmp_path, "b" * 64)


def test_only_a_sound_state_of_other_settings_is_of_another_version(tmp_path, state):
    assert not is_of_another_version(tmp_path, SHA256)
    save_state(tmp_path, state)
    assert not is_of_another_version(tmp_path, SHA256)
    assert is_of_another_version(tmp_path, "b" * 64)
    (tmp_path / STATE_FILE).write_bytes(b"damaged")
    assert not is_of_another_version(tmp_path, "b" * 64)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_state(tmp_path, state, share):
    save_state(tmp_path, state)
    file = tmp_path / STATE_FILE
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(TrainingError, match=rf"{STATE_FILE} is damaged \(.+\); remove its folder to start anew$") as e:
        load_state(tmp_path, SHA256)
    get_only_line(e)


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"<html>404</html>", pickle.dumps({"epoch": 1})])
def test_a_state_file_of_something_else(tmp_path, content):
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(TrainingError, match="is damaged") as e:
        load_state(tmp_path, SHA256)
    get_only_line(e)


def test_a_state_file_of_another_version(tmp_path, state):
    torch.save({key: value for key, value in vars(state).items() if key != "torch_rng"}, tmp_path / STATE_FILE)
    with pytest.raises(TrainingError, match=r"is damaged .*torch_rng"):
        load_state(tmp_path, SHA256)


def test_a_state_file_with_code_is_not_run(tmp_path):
    (tmp_path / STATE_FILE).write_bytes(pickle.dumps(MakesFolder(tmp_path / "made")))
    with pytest.raises(TrainingError, match="is damaged"):
        load_state(tmp_path, SHA256)
    torch.save({"epoch": MakesFolder(tmp_path / "made")}, tmp_path / STATE_FILE)
    with pytest.raises(TrainingError, match="is damaged"):
        load_state(tmp_path, SHA256)
    assert not (tmp_path / "made").exists()


def test_weights_come_back_and_equal_weights_give_equal_bytes(tmp_path):
    torch.manual_seed(0)
    network, other = TinyNetwork(4), TinyNetwork(4)
    save_weights(network.state_dict(), tmp_path / "a.safetensors")
    load_weights(other, tmp_path / "a.safetensors")
    save_weights(other.state_dict(), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    nn.init.zeros_(other.fc.bias)
    save_weights(other.state_dict(), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() != (tmp_path / "b.safetensors").read_bytes()
    assert best_file(tmp_path, 7).name == "best-0007.safetensors"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:5],
        lambda content: b"",
        lambda content: b"no weights at all",
        lambda content: safetensors.torch.save(TinyNetwork(5).state_dict()),
        lambda content: safetensors.torch.save(
            {key: value for key, value in TinyNetwork(4).state_dict().items() if key != "fc.bias"}
        ),
        lambda content: None,
    ],
    ids=["half", "five bytes", "empty", "text", "other classes", "layer missing", "no file"],
)
def test_weights_that_do_not_fit(tmp_path, damage):
    file = tmp_path / "best.safetensors"
    save_weights(TinyNetwork(4).state_dict(), file)
    content = damage(file.read_bytes())
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(TrainingError, match=r"best\.safetensors does not hold the weights of this network: .+") as e:
        load_weights(TinyNetwork(4), file)
    get_only_line(e)


@pytest.mark.parametrize(("name", "save"), [("w.safetensors", safetensors.torch.save_file), ("w.pth", torch.save)])
def test_pretrained_weights_come_without_the_last_layer(tmp_path, name, save):
    torch.manual_seed(0)
    source, network = build_network("resnet18_torchvision", 1000), build_network("resnet18_torchvision", 10)
    fc_weight = network.fc.weight.detach().clone()
    save(source.state_dict(), tmp_path / name)
    load_pretrained(network, str(tmp_path / name))
    assert torch.equal(network.fc.weight, fc_weight)
    expected = source.state_dict()
    for key, value in network.state_dict().items():
        assert key.startswith("fc.") or torch.equal(value, expected[key])
    (tmp_path / name).unlink()


def test_pretrained_weights_may_lack_the_last_layer(tmp_path):
    source, network = TinyNetwork(4), TinyNetwork(4)
    torch.save({key: value for key, value in source.state_dict().items() if "fc" not in key}, tmp_path / "w.pth")
    load_pretrained(network, str(tmp_path / "w.pth"))
    assert torch.equal(network.body[0].weight, source.body[0].weight)


def with_wrong_shape(weights):
    return weights | {"body.0.weight": torch.zeros(8, 3, 5, 5)}


def without_layers(weights):
    return {key: value for key, value in weights.items() if not key.startswith("body.1")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_wrong_shape, r"0 layers are missing and 1 have another shape \(first: body\.0\.weight\)"),
        (without_layers, r"4 layers are missing and 0 have another shape \(first: body\.1\.bias\)"),
        (lambda weights: {}, "5 layers are missing"),
        (lambda weights: {"network." + key: value for key, value in weights.items()}, "5 layers are missing"),
        (lambda weights: {"state_dict": {**weights, "epoch": 3}}, "holds no state dict of tensors"),
        (
            lambda weights: {**weights, "body.0.weight": torch.full((8, 3, 3, 3), torch.nan)},
            "body.0.weight has values that",
        ),
        (lambda weights: {"epoch": 3, **weights}, "holds no state dict of tensors"),
        (lambda weights: list(weights.values()), "holds no state dict of tensors"),
        (lambda weights: torch.zeros(3), "holds no state dict of tensors"),
    ],
    ids=["shape", "missing", "empty", "prefixed", "wrapped", "nan", "numbers too", "list", "tensor"],
)
def test_pretrained_weights_that_do_not_fit(tmp_path, change, message):
    network = TinyNetwork(4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    file = tmp_path / "w.pth"
    torch.save(change(TinyNetwork(4).state_dict()), file)
    with pytest.raises(TrainingError, match=rf"^pretrained_weights={file}:? {message}") as e:
        load_pretrained(network, str(file))
    get_only_line(e)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"epoch": 3, "state_dict": weights, "optimizer": {"lr": 0.1}},
        lambda weights: {"model": {f"module.{name}": tensor for name, tensor in weights.items()}},
        lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
    ],
)
def test_checkpoints_of_training_scripts_are_read(tmp_path, wrap):
    network, other = TinyNetwork(4), TinyNetwork(4)
    torch.save(wrap(other.state_dict()), tmp_path / "w.pth")
    load_pretrained(network, str(tmp_path / "w.pth"))
    assert torch.equal(network.body[0].weight, other.body[0].weight)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(99), b"<!DOCTYPE html>", bytes(range(256))])
def test_pretrained_garbage(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError, match=rf"{name} is not a weights file: .+") as e:
        load_pretrained(TinyNetwork(4), str(tmp_path / name))
    get_only_line(e)


def test_pretrained_archive_that_holds_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("image.txt", "not weights")
    with pytest.raises(TrainingError, match="is not a weights file"):
        load_pretrained(TinyNetwork(4), str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors", "", "/"])
def test_pretrained_file_that_is_not_there(tmp_path, name):
    source = str(tmp_path / name) if name else ""
    with pytest.raises(TrainingError, match=r"no such file; give a \.safetensors or \.pth file"):
        load_pretrained(TinyNetwork(4), source)


def test_pretrained_code_is_not_run(tmp_path):
    marker = tmp_path / "made"
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(MakesFolder(marker)))
    torch.save(TinyNetwork(4).state_dict() | {"extra": MakesFolder(marker)}, tmp_path / "torch.pth")
    torch.save(TinyNetwork(4), tmp_path / "module.pth")
    for name in ("plain.pth", "torch.pth", "module.pth"):
        with pytest.raises(TrainingError, match="is not a weights file") as e:
            load_pretrained(TinyNetwork(4), str(tmp_path / name))
        get_only_line(e)
    assert not marker.exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert marker.exists()


def as_timm_efficientnet(name):
    """Names of timm 1.0 for torchvision's EfficientNet-B0, written from timm's sources."""
    parts = name.split(".")
    if parts[0] != "features":
        return name.replace("head", "classifier")
    if len(parts) == 4:
        return {"00": "conv_stem", "01": "bn1", "80": "conv_head", "81": "bn2"}[parts[1] + parts[2]] + f".{parts[3]}"
    stage, number, layer, part, kind = int(parts[1]), parts[2], int(parts[4]), parts[5], parts[6]
    if part.startswith("fc"):
        called = {"fc1": "se.conv_reduce", "fc2": "se.conv_expand"}[part]
    elif stage == 1:
        called = {"00": "conv_dw", "01": "bn1", "20": "conv_pw", "21": "bn2"}[f"{layer}{part}"]
    else:
        layers = {"00": "conv_pw", "01": "bn1", "10": "conv_dw", "11": "bn2", "30": "conv_pwl", "31": "bn3"}
        called = layers[f"{layer}{part}"]
    return f"blocks.{stage - 1}.{number}.{called}.{kind}"


def as_torchvision_efficientnet(name):
    return name.replace("head.", "classifier.1.")


def as_timm(name):
    """Names of timm 1.0 for torchvision's ViT and Swin, written from timm's sources."""
    if name.startswith("features."):
        _, stage, rest = name.split(".", 2)
        if stage == "0":
            return {"0": "patch_embed.proj.", "2": "patch_embed.norm."}[rest[0]] + rest[2:]
        kind = "downsample" if rest.startswith(("norm.", "reduction.")) else "blocks"
        return f"layers.{int(stage) // 2}.{kind}.{rest}".replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
    if name.startswith("encoder.layers."):
        number, rest = name.removeprefix("encoder.layers.encoder_layer_").split(".", 1)
        for old, new in {
            "ln_1": "norm1",
            "ln_2": "norm2",
            "self_attention.in_proj_": "attn.qkv.",
            "self_attention.out_proj": "attn.proj",
            "mlp.0": "mlp.fc1",
            "mlp.3": "mlp.fc2",
        }.items():
            rest = rest.replace(old, new)
        return f"blocks.{number}.{rest}"
    return {
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "conv_proj.weight": "patch_embed.proj.weight",
        "conv_proj.bias": "patch_embed.proj.bias",
        "encoder.ln.weight": "norm.weight",
        "encoder.ln.bias": "norm.bias",
        "heads.head.weight": "head.weight",
        "heads.head.bias": "head.bias",
        "head.weight": "head.fc.weight",
        "head.bias": "head.fc.bias",
    }.get(name, name)


def as_old_timm(name):
    name = as_timm(name)
    first, _, rest = name.partition(".downsample.")
    return f"layers.{int(first[-1]) - 1}.downsample.{rest}" if rest else name


def as_plain(name):
    return name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "rename", "target", "size"),
    [
        ("resnet18_torchvision", as_plain, "resnet18", 32),
        ("resnet18", as_plain, "resnet18_torchvision", 32),
        ("swin_t_torchvision", as_timm, "swin_t_torchvision", 32),
        ("swin_t_torchvision", as_timm, "swin_t", 224),
        ("swin_t_torchvision", as_old_timm, "swin_t", 224),
        ("swin_t_torchvision", as_plain, "swin_t", 224),
        ("vit_b_16", as_timm, "vit_b_16", 32),
        ("efficientnet_b0", as_timm_efficientnet, "efficientnet_b0", 32),
        ("efficientnet_b0", as_torchvision_efficientnet, "efficientnet_b0", 32),
    ],
)
def test_weights_of_other_libraries_answer_the_same(tmp_path, source, rename, target, size):
    torch.manual_seed(0)
    one, other = build_network(source, 5, size).eval(), build_network(target, 3, size).eval()
    for tensor in one.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.02 * torch.rand_like(tensor))
    renamed = {rename(name): tensor for name, tensor in one.state_dict().items()}
    safetensors.torch.save_file(renamed, file := tmp_path / "other.safetensors")
    lines = load_pretrained(other, str(file))
    last = r"  left out   (fc|head|head\.fc|heads\.head|classifier(\.1)?)\.weight 5x\d+"
    assert any(re.fullmatch(last, line) for line in lines)
    assert any(re.fullmatch(r"  untrained  (fc|head|heads\.head)\.weight 3x\d+", line) for line in lines)
    for network in (one, other):
        for name in ("fc", "head", "heads"):
            if hasattr(network, name):
                setattr(network, name, nn.Identity())
    images_BCHW = torch.rand(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(one(images_BCHW), other(images_BCHW), atol=1e-3, rtol=1e-3)
    file.unlink()
