import hashlib
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import nn
from torch.optim import SGD, Adam, AdamW

from model_code.data.augmentation import crop_and_flip
from model_code.errors import UsageError
from model_code.models.networks import NETWORKS
from model_code.training import optimization, supervised
from model_code.training.config import TrainingConfig
from model_code.training.optimization import Schedule, build_optimizer
from model_code.training.processes import ALONE
from model_code.training.results import Callback
from model_code.training.schedules import triangular_factor
from model_code.training.supervised import draw_first_mirrored, fit
from tests.unit.training.small_runs import FAST, TinyNetwork, build_tiny_fastnet, make_config, make_images

STRONG = {
    "schedule": "cosine",
    "warmup_epochs": 1,
    "is_nesterov": True,
    "cutout_pixels": 2,
    "erasing_probability": 0.5,
    "cutmix_alpha": 1.0,
    "mixup_alpha": 0.2,
    "label_smoothing": 0.1,
    "ema_decay": 0.9,
}


def optimize(**settings):
    model = nn.Module()
    model.weights = nn.Parameter(torch.ones(2))
    return build_optimizer(make_config(**settings), model)


@pytest.mark.parametrize(
    ("settings", "kind", "group"),
    [
        ({"momentum": 0.8, "is_nesterov": True}, SGD, {"lr": 0.05, "momentum": 0.8, "nesterov": True}),
        ({"optimizer": "adam", "adam_betas": (0.5, 0.999), "weight_decay": 0}, Adam, {"betas": (0.5, 0.999)}),
        ({"optimizer": "adamw", "weight_decay": 0.05}, AdamW, {"weight_decay": 0.05, "lr": 0.05}),
    ],
)
def test_optimizers_have_the_settings(settings, kind, group):
    optimizer = optimize(**settings)
    assert type(optimizer) is kind
    assert {key: optimizer.param_groups[0][key] for key in group} == group


def follow(losses, steps_per_epoch=2, **settings):
    """Return the learning rate at every step."""
    optimizer = optimize(learning_rate=1.0, **settings)
    schedule = Schedule(make_config(learning_rate=1.0, **settings), optimizer, steps_per_epoch)
    rates = []
    for loss in losses:
        for _ in range(steps_per_epoch):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.end_step()
        schedule.end_epoch(*loss if isinstance(loss, tuple) else (0.0, loss))
    return rates


def test_cosine_rises_then_falls_with_each_step():
    rates = follow([1.0] * 4, schedule="cosine", warmup_epochs=1, epochs=4)
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert rates[5] == pytest.approx(0.5)
    assert rates[-1] > 0


def test_triangle_rises_and_falls_in_straight_lines():
    rates = follow([1.0] * 10, schedule="triangular", triangle=(0.2, 0.25, 0.1), epochs=10)
    assert rates[:6] == pytest.approx([0.2, 0.36, 0.52, 0.68, 0.84, 1.0])
    falls = [before - after for before, after in pairwise(rates[5:])]
    assert falls == pytest.approx([0.9 / 15] * 14)


def test_triangle_of_the_recipes_is_that_of_its_source():
    """arXiv 2404.00498's program: from 0.2 to 1 over the first 23 % of the steps, then to 0.07."""
    steps = 445
    peak = int(steps * 0.23)
    for step in range(steps):
        rise, fall = step / peak, (step - peak) / (steps - peak)
        expected = 0.2 * (1 - rise) + rise if step < peak else 1 - fall + 0.07 * fall
        assert triangular_factor(step, steps, (0.2, 0.23, 0.07)) == pytest.approx(expected)


def test_biases_of_batch_norm_learn_faster_and_decay_like_the_others():
    """One plain SGD step: the rate's factor multiplies the gradient, not the decay."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    nn.init.ones_(model[1].bias)
    config = make_config(learning_rate=0.1, weight_decay=0.5, momentum=0, norm_bias_rate_factor=8)
    optimizer = build_optimizer(config, model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 8 if name == "1.bias" else 1
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * (factor * 0.25 + 0.5 * before[name]))


def test_frozen_parameters_are_not_optimised():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[1].weight.requires_grad_(False)
    groups = build_optimizer(make_config(norm_bias_rate_factor=2), model).param_groups
    assert [len(group["params"]) for group in groups] == [2, 1]


def test_plateau_waits_for_its_patience_and_stops_at_its_least():
    losses = [3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    settings = {"schedule": "plateau", "decay_factor": 0.5, "patience_epochs": 1, "min_learning_rate": 0.3}
    assert follow(losses, steps_per_epoch=1, **settings) == [1, 1, 1, 1, 0.5, 0.5, 0.3]


@pytest.mark.parametrize(("watched", "rates"), [("train", [1, 1, 1, 1, 1]), ("validation", [1, 1, 1, 0.5, 0.5])])
def test_plateau_follows_the_loss_that_it_is_to_watch(watched, rates):
    """The training loss falls, the validation loss rises."""
    losses = [(2.0, 1.0), (1.5, 1.1), (1.0, 1.2), (0.8, 1.3), (0.6, 1.4)]
    settings = {"schedule": "plateau", "decay_factor": 0.5, "patience_epochs": 1, "plateau_watches": watched}
    assert follow(losses, steps_per_epoch=1, **settings) == rates


def test_a_run_hands_the_plateau_the_loss_of_its_training_images(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(Schedule, "end_epoch", lambda _schedule, *losses: told.append(losses))
    result = fit(make_config(epochs=2), make_images(), tmp_path, ALONE)
    assert told == [(epoch.train_loss, epoch.validation_loss) for epoch in result.history]
    assert len(set(told[0])) == 2


@pytest.fixture
def tiny_fastnet(monkeypatch):
    monkeypatch.setitem(NETWORKS, "tiny_fastnet", build_tiny_fastnet)
    return {"network": "tiny_fastnet", **FAST}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_fast_run_that_was_interrupted_ends_like_one_that_was_not(tmp_path, tiny_fastnet, precision):
    from tests.unit.training.test_fit import Interrupt, StopHere, list_weights

    config = make_config(**tiny_fastnet, epochs=5, engine={"precision": precision})
    images = make_images(train=26, side=12)
    whole = fit(config, images, tmp_path / "whole", ALONE)
    for epoch in (2, 4):
        with pytest.raises(StopHere):
            fit(config, images, tmp_path / "parts", ALONE, [Interrupt(epoch, None)])
    parts = fit(config, images, tmp_path / "parts", ALONE)
    fit(config, images, tmp_path / "again", ALONE)
    assert list_weights(tmp_path / "parts") == list_weights(tmp_path / "whole") == list_weights(tmp_path / "again")
    assert [m.learning_rate for m in parts.history] == [m.learning_rate for m in whole.history]


def test_a_fast_run_stopped_within_an_epoch_ends_like_one_that_was_not(tmp_path, tiny_fastnet):
    """Stopped between two pulls of Lookahead."""
    from tests.unit.training.test_fit import list_weights

    class Stop(Callback):
        wants_stop = False

        def on_step(self, epoch, step, steps, loss):
            self.wants_stop = (epoch, step) == (3, 2)

    config, images = make_config(**tiny_fastnet, epochs=5), make_images(train=26, side=12)
    fit(config, images, tmp_path / "whole", ALONE)
    with pytest.raises(KeyboardInterrupt):
        fit(config, images, tmp_path / "parts", ALONE, [Stop()])
    fit(config, images, tmp_path / "parts", ALONE)
    assert list_weights(tmp_path / "parts") == list_weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"flip": "alternating", "has_flip": False}, "has_flip=false does not; choose one"),
        ({"norm_bias_rate_factor": 2, "optimizer": "adam"}, "is for sgd and adamw"),
        ({"has_partial_identity": True, "pretrained_weights": "x.safetensors"}, "leave them out"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, line):
    with pytest.raises(ValidationError, match=line):
        make_config(**settings)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"crop_border": "reflect", "crop_padding_pixels": 8}, "crop_padding_pixels=8 .* at most 7"),
        ({"shift_averaging_pixels": 9}, "shift_averaging_pixels=9 .* at most 7"),
        ({"whitening_images": 5}, "TinyNetwork has none; choose --set network=fastnet"),
    ],
)
def test_settings_that_the_images_or_the_network_do_not_allow_are_refused_at_the_start(tmp_path, settings, line):
    with pytest.raises(UsageError, match=line):
        fit(make_config(**settings), make_images(), tmp_path, ALONE)
    assert not list(tmp_path.iterdir())


def test_every_fast_option_changes_the_run(tmp_path, tiny_fastnet):
    images = make_images(side=12)
    config = make_config(**tiny_fastnet, epochs=3)
    off = {
        **{key: TrainingConfig.model_fields[key].default for key in FAST if key != "kept_epoch"},
        "whitening_bias_epochs": 1,
        "triangle": (0.3, 0.4, 0.2),
    }
    weights = {}
    for key, value in {"all on": None, **off}.items():
        changed = config if value is None else config.model_copy(update={key: value})
        fit(changed, images, tmp_path / key, ALONE)
        weights[key] = (tmp_path / key / "last.safetensors").read_bytes()
    assert len(set(weights.values())) == len(off) + 1


def test_the_bias_of_the_whitening_learns_in_its_epochs_only(tmp_path, tiny_fastnet):
    from safetensors.torch import load_file

    images = make_images(side=12)
    learned = []
    for epochs in (1, 2, 4):
        # Without Lookahead, a rate and an end of their own, runs of different lengths begin the same.
        changes = {"has_lookahead": False, "schedule": "multistep", "whitening_bias_epochs": 2, "epochs": epochs}
        fit(make_config(**{**tiny_fastnet, **changes}), images, tmp_path / str(epochs), ALONE)
        learned.append(load_file(tmp_path / str(epochs) / "last.safetensors")["whitening.bias"])
    assert not torch.equal(learned[0], learned[1])
    assert torch.equal(learned[1], learned[2])


def test_half_of_the_images_start_mirrored_and_the_seed_says_which():
    config = make_config(**FAST | {"network": "fastnet"})
    first = draw_first_mirrored(config, 1000)
    assert 400 < int(first.sum()) < 600
    assert not torch.equal(first, draw_first_mirrored(config.model_copy(update={"seed": 1}), 1000))


def test_alternating_flips_turn_every_image_each_epoch(tmp_path, monkeypatch):
    """Each image has its number in one corner and zeros in the other."""
    seen = []

    def watch(images, padding, has_flip, generator, **options):
        shown = crop_and_flip(images, 0, has_flip, generator, **options)
        seen.append({int(image[0, :, 0].max()): bool(image[0, -1, 0]) for image in shown})
        return crop_and_flip(images, padding, has_flip, generator, **options)

    monkeypatch.setattr(supervised, "crop_and_flip", watch)
    pixels = torch.zeros(32, 8, 8, 3, dtype=torch.uint8)
    pixels[:, 0, 0] = torch.arange(1, 33, dtype=torch.uint8)[:, None]
    images = make_images(train=32)
    images = replace(images, train=replace(images.train, images_NHWC=pixels))
    config = make_config(flip="alternating", batch_size=8, epochs=4)
    fit(config, images, tmp_path, ALONE)
    epochs = [
        {number: side for batch in seen[start : start + 4] for number, side in batch.items()} for start in (0, 4, 8, 12)
    ]
    first = draw_first_mirrored(config, 32).tolist()
    for index, sides in enumerate(epochs):
        assert sides == {number: first[number - 1] ^ bool(index % 2) for number in range(1, 33)}


def test_the_last_epoch_is_kept_where_that_is_wanted(tmp_path, monkeypatch):
    from tests.unit.training.test_fit import FixedNetwork

    # Every epoch is as good as the first, which is then the best.
    monkeypatch.setitem(NETWORKS, "fixed", FixedNetwork)
    best, last = (
        fit(make_config(network="fixed", kept_epoch=kept), make_images(), tmp_path / kept, ALONE)
        for kept in ("best", "last")
    )
    assert (best.best_epoch, last.best_epoch) == (1, 4)
    assert [file.name for file in (tmp_path / "last").glob("best-*")] == ["best-0004.safetensors"]


def test_two_averages_of_the_weights_are_refused():
    with pytest.raises(ValidationError, match="two averages"):
        make_config(has_lookahead=True, ema_decay=0.9)


def test_a_strong_run_that_was_interrupted_ends_like_one_that_was_not(tmp_path):
    from tests.unit.training.test_fit import Interrupt, StopHere, list_weights

    config, images = make_config(**STRONG), make_images(train=26)
    whole = fit(config, images, tmp_path / "whole", ALONE)
    for epoch in (1, 3):
        with pytest.raises(StopHere):
            fit(config, images, tmp_path / "parts", ALONE, [Interrupt(epoch, None)])
    parts = fit(config, images, tmp_path / "parts", ALONE)
    assert list_weights(tmp_path / "parts") == list_weights(tmp_path / "whole")
    assert [m.learning_rate for m in parts.history] == [m.learning_rate for m in whole.history]


@pytest.mark.parametrize("settings", [{"optimizer": "adam", "schedule": "plateau"}, {"optimizer": "adamw"}])
def test_adam_runs_that_were_interrupted_too(tmp_path, settings):
    from tests.unit.training.test_fit import Interrupt, StopHere, list_weights

    config, images = make_config(learning_rate=0.01, **settings), make_images(train=26)
    fit(config, images, tmp_path / "whole", ALONE)
    with pytest.raises(StopHere):
        fit(config, images, tmp_path / "parts", ALONE, [Interrupt(2, None)])
    fit(config, images, tmp_path / "parts", ALONE)
    assert list_weights(tmp_path / "parts") == list_weights(tmp_path / "whole")


def test_the_moving_average_is_what_is_kept(tmp_path):
    plain = {key: value for key, value in STRONG.items() if key != "ema_decay"}
    images = make_images()
    fit(make_config(**plain), images, tmp_path / "plain", ALONE)
    fit(make_config(**STRONG), images, tmp_path / "average", ALONE)
    from safetensors.torch import load_file

    raw, average = (load_file(tmp_path / name / "last.safetensors") for name in ("plain", "average"))
    assert raw.keys() == average.keys()
    assert not torch.equal(raw["fc.weight"], average["fc.weight"])


def test_every_strong_option_changes_the_run(tmp_path):
    images = make_images()
    weights = {(tmp_path / "plain" / "last.safetensors")}
    fit(make_config(), images, tmp_path / "plain", ALONE)
    keys = [key for key in STRONG if key not in ("schedule", "warmup_epochs")]
    for key in keys:
        fit(make_config(**{key: STRONG[key]}), images, tmp_path / key, ALONE)
        weights.add(tmp_path / key / "last.safetensors")
    assert len({file.read_bytes() for file in weights}) == len(weights) == 1 + len(keys)


def test_the_backbone_learns_at_a_rate_of_its_own():
    model = nn.Sequential(nn.Identity(), TinyNetwork(4))
    config = make_config(learning_rate=0.5, backbone_rate_factor=0.1, norm_bias_rate_factor=2, weight_decay=0.5)
    groups = build_optimizer(config, model).param_groups
    found = [(group["lr"], group["weight_decay"], [one.shape for one in group["params"]]) for group in groups]
    assert [(rate, decay) for rate, decay, _ in found] == [(0.5, 0.5), (0.05, 0.5), (0.1, 0.25)]
    assert [shapes for *_, shapes in found] == [[(4, 8), (4,)], [(8, 3, 3, 3), (8,)], [(8,)]]


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("frozen_epochs", [1, 2])
def test_a_frozen_backbone_learns_after_its_epochs(tmp_path, monkeypatch, frozen_epochs, is_fused):
    if is_fused:  # as on CUDA
        monkeypatch.setattr(optimization, "SGD", lambda *given, **more: SGD(*given, **more | {"fused": True}))
    torch.save(TinyNetwork(4).state_dict(), start := tmp_path / "start.pth")
    config = make_config(epochs=2, frozen_epochs=frozen_epochs, pretrained_weights=str(start))
    result = fit(config, make_images(), tmp_path / "run", ALONE)
    first, last = torch.load(start), safetensors.torch.load_file(result.last_weights)
    assert torch.equal(first["body.0.weight"], last["body.0.weight"]) == (frozen_epochs == 2)
    assert not torch.equal(first["fc.weight"], last["fc.weight"])


def test_a_network_without_a_last_layer_has_no_backbone(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "tiny", lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(192, classes)))
    for setting in ({"frozen_epochs": 1}, {"backbone_rate_factor": 0.1}):
        with pytest.raises(UsageError, match="tiny cannot be a backbone"):
            fit(make_config(**setting), make_images(), tmp_path, ALONE)


def test_settings_of_a_backbone_leave_older_hashes():
    settings = make_config().model_dump(mode="json")
    older = {key: one for key, one in settings.items() if key not in {"backbone_rate_factor", "frozen_epochs"}}
    older["engine"] = {key: one for key, one in settings["engine"].items() if key not in {"kernels", "readers"}}
    assert make_config().sha256() == hashlib.sha256(json.dumps(older, sort_keys=True).encode()).hexdigest()
    assert make_config(frozen_epochs=1).sha256() != make_config().sha256()
