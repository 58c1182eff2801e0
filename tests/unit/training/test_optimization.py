import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from model_code.training.optimization import Schedule, build_optimizer
from model_code.training.processes import ALONE
from model_code.training.supervised import fit
from tests.unit.training.small_runs import make_config, make_pictures

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
    parameters = [nn.Parameter(torch.ones(2))]
    return build_optimizer(make_config(**settings), parameters)


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
        schedule.end_epoch(loss)
    return rates


def test_cosine_rises_then_falls_with_each_step():
    rates = follow([1.0] * 4, schedule="cosine", warmup_epochs=1, epochs=4)
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert rates[5] == pytest.approx(0.5)
    assert rates[-1] > 0


def test_plateau_waits_for_its_patience_and_stops_at_its_least():
    losses = [3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    settings = {"schedule": "plateau", "decay_factor": 0.5, "patience_epochs": 1, "min_learning_rate": 0.3}
    assert follow(losses, steps_per_epoch=1, **settings) == [1, 1, 1, 1, 0.5, 0.5, 0.3]


def test_a_strong_run_that_was_interrupted_ends_like_one_that_was_not(tmp_path):
    from tests.unit.training.test_fit import Interrupt, StopHere, list_weights

    config, pictures = make_config(**STRONG), make_pictures(train=26)
    whole = fit(config, pictures, tmp_path / "whole", ALONE)
    for epoch in (1, 3):
        with pytest.raises(StopHere):
            fit(config, pictures, tmp_path / "parts", ALONE, [Interrupt(epoch, None)])
    parts = fit(config, pictures, tmp_path / "parts", ALONE)
    assert list_weights(tmp_path / "parts") == list_weights(tmp_path / "whole")
    assert [m.learning_rate for m in parts.history] == [m.learning_rate for m in whole.history]


@pytest.mark.parametrize("settings", [{"optimizer": "adam", "schedule": "plateau"}, {"optimizer": "adamw"}])
def test_adam_runs_that_were_interrupted_too(tmp_path, settings):
    from tests.unit.training.test_fit import Interrupt, StopHere, list_weights

    config, pictures = make_config(learning_rate=0.01, **settings), make_pictures(train=26)
    fit(config, pictures, tmp_path / "whole", ALONE)
    with pytest.raises(StopHere):
        fit(config, pictures, tmp_path / "parts", ALONE, [Interrupt(2, None)])
    fit(config, pictures, tmp_path / "parts", ALONE)
    assert list_weights(tmp_path / "parts") == list_weights(tmp_path / "whole")


def test_the_moving_average_is_what_is_kept(tmp_path):
    plain = {key: value for key, value in STRONG.items() if key != "ema_decay"}
    pictures = make_pictures()
    fit(make_config(**plain), pictures, tmp_path / "plain", ALONE)
    fit(make_config(**STRONG), pictures, tmp_path / "average", ALONE)
    from safetensors.torch import load_file

    raw, average = (load_file(tmp_path / name / "last.safetensors") for name in ("plain", "average"))
    assert raw.keys() == average.keys()
    assert not torch.equal(raw["fc.weight"], average["fc.weight"])


def test_every_strong_option_changes_the_run(tmp_path):
    pictures = make_pictures()
    weights = {(tmp_path / "plain" / "last.safetensors")}
    fit(make_config(), pictures, tmp_path / "plain", ALONE)
    keys = [key for key in STRONG if key not in ("schedule", "warmup_epochs")]
    for key in keys:
        fit(make_config(**{key: STRONG[key]}), pictures, tmp_path / key, ALONE)
        weights.add(tmp_path / key / "last.safetensors")
    assert len({file.read_bytes() for file in weights}) == len(weights) == 1 + len(keys)
