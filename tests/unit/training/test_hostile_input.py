import pytest
import torch

from model_code.errors import DarkroomError, DataError, TrainingError, UsageError
from model_code.models.networks import build_network
from model_code.recipes.catalog import build_config
from model_code.training.checkpoints import load_pretrained, load_state, save_state
from model_code.training.images import load_images
from model_code.training.processes import ALONE
from model_code.training.results import Callback
from model_code.training.run_config import override, parse_assignment
from model_code.training.run_folder import RESULT_FILE, STATE_FILE, RunRecord, create_run_folder
from model_code.training.supervised import fit
from tests.unit.training.small_runs import CPU, TinyNetwork, make_config, make_images, tiny_network_entered
from tests.unit.training.test_training_images import make_dataset


@pytest.fixture(autouse=True)
def tiny_network():
    with tiny_network_entered():
        yield


def test_torchvisions_own_weights_can_be_loaded(tmp_path):
    """resnet18-f37072fd.pth is from before torch 0.4.1: its batch norms have no num_batches_tracked."""
    weights = build_network("resnet18_torchvision", 1000).state_dict()
    torch.save({k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}, tmp_path / "w.pth")
    load_pretrained(build_network("resnet18_torchvision", 10), str(tmp_path / "w.pth"))


def test_one_epoch_has_the_learning_rate_of_the_config(tmp_path):
    config = make_config(epochs=1, learning_rate=0.5, decay_points=(0.3, 0.6, 0.9))
    result = fit(config, make_images(), tmp_path, ALONE)
    assert result.history[0].learning_rate == pytest.approx(0.5)


@pytest.mark.parametrize(
    "text",
    ["mean=[NaN,0.5,0.5]", "mean=[Infinity,0,0]", "std=[NaN,0.5,0.5]", "std=[0.5,Infinity,1]", "weight_decay=Infinity"],
)
def test_settings_that_are_not_finite_are_refused(text):
    with pytest.raises(UsageError):
        override(make_config(), dict([parse_assignment(text)]))


@pytest.mark.parametrize("key", ["seed"])
def test_a_seed_that_torch_does_not_take_is_refused(tmp_path, key):
    with pytest.raises(DarkroomError):
        fit(override(make_config(), {key: 2**64}), make_images(), tmp_path, ALONE)


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000], ids=["5000 digits", "100000 brackets"])
def test_assignments_of_any_text_do_not_crash(value):
    assert parse_assignment(f"dataset={value}") == ("dataset", value)


@pytest.mark.parametrize(
    "content",
    [
        b"hello\n",
        b"a\n",
        b"0123456789",
        b"J\x01",
        b"cos\nsystem\n",
        b"\x80\x02X\x05\0\0\0\xff\xff\xff\xff\xff.",
        b"}q\x00h\x05.",
    ],
)
def test_text_and_other_files_are_no_weights(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(TrainingError):
        load_pretrained(TinyNetwork(4), str(tmp_path / "w.pth"))


def make_state():
    from tests.unit.training.test_checkpoints import TrainingState

    network = TinyNetwork(4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return TrainingState(
        "a" * 64,
        1,
        1,
        network.state_dict(),
        None,
        optimizer.state_dict(),
        {},
        torch.Generator().get_state(),
        torch.get_rng_state(),
        [],
    )


def test_every_damaged_byte_of_the_state_is_one_line_or_harmless(tmp_path):
    import random

    save_state(tmp_path, make_state())
    file = tmp_path / STATE_FILE
    content = file.read_bytes()
    rng, escaped = random.Random(0), {}
    for _ in range(600):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        try:
            load_state(tmp_path, "a" * 64)
        except TrainingError:
            pass
        except Exception as error:  # noqa: BLE001
            escaped[type(error).__name__] = escaped.get(type(error).__name__, 0) + 1
    assert escaped == {}


def test_divergence_in_the_last_step_is_noticed(tmp_path):
    """The training loss of the only step is finite; the weights and the validation loss are not."""
    config = make_config(epochs=1, batch_size=24, learning_rate=1e38)
    with pytest.raises(TrainingError):
        fit(config, make_images(), tmp_path, ALONE)


class Stop(Callback):
    def __init__(self, epoch=2):
        self.epoch = epoch

    def on_epoch_end(self, metrics):
        if metrics.epoch == self.epoch:
            raise KeyError


def test_only_one_best_file_after_a_kill_before_the_old_one_is_removed(tmp_path):
    """kill -9 between writing state.pt and removing the previous best file: it stays for ever."""
    config, images, run_dir = make_config(epochs=6, learning_rate=0.3), make_images(), tmp_path / "run"
    for epoch in range(1, 6):
        before = {file.name: file.read_bytes() for file in run_dir.glob("best-*")}
        with pytest.raises(KeyError):
            fit(config, images, run_dir, ALONE, [Stop(epoch)])
        state = load_state(run_dir, config.sha256())
        if epoch > 1 and state.best_epoch == epoch:
            [(name, content)] = before.items()
            (run_dir / name).write_bytes(content)  # as if the process had been killed before the removal
            break
    result = fit(config, images, run_dir, ALONE)
    assert [file.name for file in run_dir.glob("best-*")] == [result.best_weights.name]


def test_a_resumed_run_needs_its_pretrained_file_no_more(tmp_path):
    """Doubtful: state.pt holds everything, yet the file is read again."""
    torch.save(TinyNetwork(4).state_dict(), tmp_path / "w.pth")
    config = make_config(pretrained_weights=str(tmp_path / "w.pth"))
    with pytest.raises(KeyError):
        fit(config, make_images(), tmp_path / "run", ALONE, [Stop()])
    (tmp_path / "w.pth").unlink()
    fit(config, make_images(), tmp_path / "run", ALONE)


def test_images_without_label_are_refused(tmp_path):
    with pytest.raises(DataError):
        load_images(make_dataset(tmp_path, labels=[0, 1, 2, -1] * 25), make_config(), CPU)


def test_a_damaged_result_is_one_line(tmp_path):
    folder = create_run_folder(tmp_path, RunRecord(run_id="1" * 32, data_checksum="c", config=make_config()))
    (folder.path / RESULT_FILE).write_bytes(b"{")
    with pytest.raises(TrainingError):
        _ = folder.result


def test_exp9_without_pretrained_weights_is_not_the_documented_run():
    assert build_config("resnet18_cifar10_exp9", "full", {"pretrained_weights": None}).profile == "custom"


def test_nesterov_without_momentum_is_one_line():
    with pytest.raises(UsageError, match="is_nesterov needs a momentum"):
        override(make_config(), {"is_nesterov": True, "momentum": 0})
