import json
import math
import subprocess
import sys

import pytest
from pydantic import ValidationError

from model_code.errors import UsageError
from model_code.recipes.catalog import build_config
from model_code.training.config import TrainingConfig, suggest_more_validation
from model_code.training.epoch_config import EngineSettings
from model_code.training.run_config import override, parse_assignment

CONFIG = TrainingConfig(recipe="resnet18_cifar10_exp3", network="resnet18_improved")
# A valid value of every setting that is not the one in CONFIG.
OTHER_VALUES = {
    "clip_norm": 1.0,
    "engine": EngineSettings(parts=2, kernels="fastest"),
    "recipe": "another",
    "profile": "smoke",
    "dataset": "shapes",
    "network": "resnet18",
    "pretrained_weights": "weights.pth",
    "pseudo_label_confidence": 0.9,
    "epochs": 99,
    "batch_size": 64,
    "learning_rate": 0.02,
    "momentum": 0.8,
    "weight_decay": 0.0,
    "decay_points": (0.5,),
    "decay_factor": 0.2,
    "optimizer": "adam",
    "is_nesterov": True,
    "adam_betas": (0.5, 0.999),
    "schedule": "cosine",
    "patience_epochs": 2,
    "plateau_watches": "train",
    "min_learning_rate": 1e-6,
    "warmup_epochs": 5,
    "cutout_pixels": 8,
    "erasing_probability": 0.25,
    "cutmix_alpha": 1.0,
    "mixup_alpha": 0.2,
    "label_smoothing": 0.1,
    "class_weights": "balanced",
    "sampling": "balanced",
    "ema_decay": 0.99,
    "crop_padding_pixels": 3,
    "has_flip": False,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "validation_fraction": 0.1,
    "split_seed": 43,
    "limit_test": 7,
    "image_size": 64,
    "crop_area": (0.5, 1.0),
    "has_flip_averaging": True,
    "has_partial_identity": True,
    "whitening_images": 100,
    "whitening_bias_epochs": 2,
    "has_frozen_norm_scale": True,
    "norm_bias_rate_factor": 64.0,
    "backbone_rate_factor": 0.1,
    "frozen_epochs": 1,
    "has_lookahead": True,
    "triangle": (0.1, 0.5, 0.0),
    "crop_border": "reflect",
    "flip": "alternating",
    "shift_averaging_pixels": 1,
    "kept_epoch": "last",
    "limit_train": 100,
    "seed": 1,
    "device": "cpu",
}
NUMBERS = [key for key, field in TrainingConfig.model_fields.items() if field.annotation in (int, float)]


def test_settings_that_the_article_states_are_the_defaults():
    assert (CONFIG.epochs, CONFIG.split_seed, CONFIG.validation_fraction) == (100, 42, 0.2)
    assert (CONFIG.crop_padding_pixels, CONFIG.has_flip) == (4, True)
    assert (CONFIG.mean, CONFIG.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert (CONFIG.momentum, CONFIG.weight_decay, CONFIG.batch_size, CONFIG.decay_points) == (0.9, 5e-4, 128, ())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network", "resnet19"),
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 1),
        ("learning_rate", 0),
        ("learning_rate", -0.1),
        ("learning_rate", math.inf),
        ("momentum", -0.1),
        ("momentum", 1),
        ("weight_decay", -1e-9),
        ("decay_points", (0,)),
        ("decay_points", (0.5, 1)),
        ("decay_points", (math.nan,)),
        ("decay_points", "often"),
        ("decay_factor", 0),
        ("decay_factor", math.inf),
        ("crop_padding_pixels", -1),
        ("crop_padding_pixels", 17),
        ("has_flip", "perhaps"),
        ("erasing_probability", -0.1),
        ("erasing_probability", 1.1),
        ("mixup_alpha", -0.1),
        ("mixup_alpha", math.inf),
        ("mean", (0.5, 0.5)),
        ("std", (0.5, 0, 0.5)),
        ("std", (0.5, -0.1, 0.5)),
        ("validation_fraction", 0),
        ("validation_fraction", 1),
        ("split_seed", -1),
        ("limit_train", 0),
        ("seed", -1),
        ("seed", "many"),
        ("device", "tpu"),
        ("dataset", None),
        *((key, math.nan) for key in NUMBERS),
    ],
)
def test_values_outside_their_range_are_refused_in_one_line(key, value):
    with pytest.raises(UsageError, match=rf"^{key}\S*=") as caught:
        override(CONFIG, {key: value})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError, match=key):
        TrainingConfig(**{"recipe": "x", "network": "resnet18", key: value})


def test_unknown_network_names_those_that_exist():
    with pytest.raises(UsageError, match=r"^network='resnet19': .*no such network; did you mean resnet18"):
        override(CONFIG, {"network": "resnet19"})


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(UsageError, match=r"^\S+ has no setting 'learning_rat', 'lr'; did you mean learning_rate"):
        override(CONFIG, {"lr": 0.1, "learning_rat": 0.1, "seed": 1})
    for key in ("recipe", "profile"):
        with pytest.raises(UsageError, match=f"has no setting '{key}'"):
            override(CONFIG, {key: "smoke"})
    with pytest.raises(ValidationError, match="profile"):
        TrainingConfig(recipe="x", network="resnet18", profile="big")
    with pytest.raises(ValidationError, match="Extra inputs"):
        TrainingConfig(recipe="x", network="resnet18", lr=0.1)


def test_override_changes_what_is_named_and_nothing_else():
    changed = override(CONFIG, {"learning_rate": 0.5, "decay_points": [0.3, 0.6], "epochs": "7"})
    assert (changed.learning_rate, changed.decay_points, changed.epochs) == (0.5, (0.3, 0.6), 7)
    assert override(changed, {"learning_rate": 0.01, "decay_points": [], "epochs": 100}) == CONFIG


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(ValidationError, match="frozen"):
        CONFIG.seed = 3


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("epochs=5", "epochs", 5),
        ("learning_rate=1e-3", "learning_rate", 0.001),
        ("has_flip=false", "has_flip", False),
        ("limit_train=null", "limit_train", None),
        ("decay_points=[0.3, 0.6]", "decay_points", [0.3, 0.6]),
        ('dataset="shapes"', "dataset", "shapes"),
        ("dataset=shapes", "dataset", "shapes"),
        ("pretrained_weights=/tmp/a=b.pth", "pretrained_weights", "/tmp/a=b.pth"),
        ("decay_points=[0.3, 0.6", "decay_points", "[0.3, 0.6"),
        (" epochs =5", "epochs", 5),
        ("dataset=", "dataset", ""),
    ],
)
def test_assignments(text, key, value):
    assert parse_assignment(text) == (key, value)


@pytest.mark.parametrize("text", ["epochs", "", "=5", "epochs:5"])
def test_assignments_without_key_or_equals_sign(text):
    with pytest.raises(UsageError, match="write key=value, for example"):
        parse_assignment(text)


def test_json_that_is_no_number_is_refused_when_it_is_set():
    for text in ("learning_rate=NaN", "learning_rate=Infinity", "learning_rate=[0.1]", "learning_rate=fast"):
        with pytest.raises(UsageError, match=r"^learning_rate="):
            override(CONFIG, dict([parse_assignment(text)]))


def test_every_setting_has_a_part_in_the_hash():
    assert set(OTHER_VALUES) == set(TrainingConfig.model_fields) - {"kind"}
    hashes = {CONFIG.sha256()}
    for key, value in OTHER_VALUES.items():
        needed = {"pretrained_weights": "recipe:another"} if key == "pseudo_label_confidence" else {}
        before = CONFIG.model_copy(update=needed)
        changed = TrainingConfig(**(before.model_dump() | {key: value}))
        assert getattr(changed, key) != getattr(before, key)
        hashes |= {before.sha256(), changed.sha256()}
    assert len(hashes) == 2 + len(OTHER_VALUES)


def test_equal_configs_have_equal_hashes_however_they_were_made():
    by_hand = TrainingConfig(learning_rate=1, decay_points=[0.5], network="resnet18", recipe="x")
    again = TrainingConfig(recipe="x", network="resnet18", decay_points=(0.5,), learning_rate=1.0)
    from_json = TrainingConfig.model_validate_json(by_hand.model_dump_json())
    from_text = TrainingConfig.model_validate(json.loads(json.dumps(by_hand.model_dump(mode="json"))))
    assert by_hand == again == from_json == from_text
    assert len({config.sha256() for config in (by_hand, again, from_json, from_text)}) == 1


def test_the_hash_is_the_same_in_every_process():
    code = (
        "from model_code.training.config import TrainingConfig as C; import sys;"
        "print(C(recipe='resnet18_cifar10_exp3', network='resnet18_improved').sha256(), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert done.stdout.split() == [CONFIG.sha256(), "False"]


@pytest.mark.parametrize(
    ("profile", "count", "is_own", "suggested"),
    [
        ("full", 99, False, "--set validation_fraction=0.2"),
        ("full", 100, False, ""),
        ("full", 14, True, ""),
        ("smoke", 14, False, ""),
    ],
)
def test_more_validation_images_are_suggested_where_a_setting_can_hold_them_out(profile, count, is_own, suggested):
    config = build_config("fastnet_cifar10", profile)
    assert suggest_more_validation(config, count, is_own=is_own) == suggested
    enough = build_config("fastnet_cifar10", profile, {"validation_fraction": 0.2})
    assert suggest_more_validation(enough, count, is_own=is_own) == ""
