from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from flows.operations import release, release_source
from flows.operations.release import Champion, compare
from model_code.errors import ReleaseError
from model_code.release.export import Exported
from model_code.release.gate_rules import GateRules
from model_code.settings import load_settings
from model_code.training.images import load_images
from serving.bundle.store import read_bundle
from serving.models.classifier import Classifier
from tests.unit.serving.tiny_bundle import COLOURS, IMAGE_SIZE, make_two_variants
from tests.unit.training.small_runs import CPU, make_config
from tests.unit.training.test_training_images import list_numbers, make_dataset


def paint_all(count=4):
    """Images of every colour, and their labels."""
    labels_N = np.repeat(np.arange(len(COLOURS)), count)
    colours_KC = np.array(list(COLOURS.values()), dtype=np.uint8)
    return np.tile(colours_KC[labels_N][:, None, None], (1, IMAGE_SIZE, IMAGE_SIZE, 1)), labels_N


@pytest.fixture
def exported(tmp_path):
    """(what is released, its folder)"""
    folder = make_two_variants(tmp_path / "challenger", manifest={"run_id": "c" * 32})
    return Exported(read_bundle(folder), "test", *paint_all()), folder


def make_champion(folder: Path, **fields) -> Champion:
    bundle = make_two_variants(folder, manifest=fields)
    return Champion("7", read_bundle(bundle), bundle)


def judge(exported, champion, mode="enabled"):
    return compare(*exported, champion, GateRules(), mode)


def test_classes_are_compared_by_their_names(exported, tmp_path):
    """The champion's graph is the same, so that with two names exchanged it is wrong about exactly these."""
    same = judge(exported, make_champion(tmp_path))
    assert (same.challenger_accuracy, same.champion_accuracy, same.gained, same.lost) == (1, 1, 0, 0)
    names = ("green", "red", *tuple(COLOURS)[2:])
    swapped = judge(exported, make_champion(tmp_path / "swapped", classes=names))
    assert (swapped.champion_version, swapped.gained, swapped.lost) == ("7", 8, 0)
    assert {change.label for change in swapped.classes if change.gained} == {"red", "green"}


def test_a_verdict_names_the_variants_whose_labels_it_judged(exported, tmp_path, monkeypatch):
    chosen = {"challenger": "int8", "7": "fp32"}
    monkeypatch.setattr(release, "Classifier", lambda *given: Classifier(*given, precision=chosen[given[1]]))
    verdict = judge(exported, make_champion(tmp_path))
    assert verdict.measured.startswith(
        "accuracy 1.0000 as int8 against 1.0000 of version 7 as fp32 on 24 test images: "
    )
    assert judge(exported, None).measured.startswith("accuracy 1.0000 as int8 (95 % interval ")


def test_a_verdict_says_how_many_of_its_images_the_champion_has_learned(exported, tmp_path, monkeypatch):
    """The challenger held out a part of 60 training images, the champion another part of all 100."""
    champion = make_champion(tmp_path, run_id="d" * 32)
    configs = {"c" * 32: make_config(network="resnet18", limit_train=60), "d" * 32: make_config(network="resnet18")}
    dataset = make_dataset(tmp_path, has_test=False)
    held_out = set(list_numbers(load_images(dataset, configs["c" * 32], CPU).validation))
    learned = held_out & set(list_numbers(load_images(dataset, configs["d" * 32], CPU).train))
    assert 0 < len(learned) < len(held_out)
    monkeypatch.setattr(release, "open_dataset", lambda *_: dataset)
    monkeypatch.setattr(
        release,
        "open_run_folder",
        lambda _, run_id: SimpleNamespace(record=SimpleNamespace(config=configs[run_id])),
    )
    judged, folder = exported
    verdict = judge((replace(judged, split="validation"), folder), champion)
    assert verdict.learned_by_champion == len(learned)
    assert f"validation images (version 7 was trained on {len(learned)} of them): " in verdict.measured
    assert judge(exported, champion).learned_by_champion == 0, "test images are learned by none"
    assert "was trained on" not in judge(exported, champion).measured


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 9}, "reads images of 9 pixels"),
    ],
)
def test_what_cannot_be_compared_is_released_by_force_only(exported, tmp_path, fields, message):
    champion = make_champion(tmp_path, **fields)
    with pytest.raises(ReleaseError, match=f"{message}.*--mode forced --why REASON releases without a comparison"):
        judge(exported, champion)
    forced = judge(exported, champion, "forced")
    assert (forced.champion_version, forced.is_promoted, forced.difference) == (None, True, None)


def test_other_classes_replace_a_champion_on_request_only(tmp_path, monkeypatch):
    champion = make_champion(tmp_path)
    classes = {"same": tuple(reversed(COLOURS)), "other": (*tuple(COLOURS)[:-1], "grey")}
    monkeypatch.setattr(release, "open_dataset", lambda name, _: SimpleNamespace(classes=classes[name]))
    assert release._has_same_classes(champion, "same", False)
    assert not release._has_same_classes(champion, "other", True)
    last = tuple(COLOURS)[-1]
    message = f"^version 7 of .* answers 6 classes, other has 6, without {last} and with grey; .*--new-classes$"
    with pytest.raises(ReleaseError, match=message):
        release._has_same_classes(champion, "other", False)


def test_a_recipe_on_several_data_sets_is_released_by_the_name_of_one(monkeypatch, tmp_path):
    def make_folder(dataset):
        return SimpleNamespace(
            record=SimpleNamespace(config=SimpleNamespace(recipe="fastnet_cifar10", dataset=dataset))
        )

    folders = [make_folder("pets"), make_folder("flowers-with-feedback"), make_folder("flowers")]
    monkeypatch.setattr(release_source, "list_finished", lambda _: folders)
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    settings = load_settings()
    assert release_source.check_source("fastnet_cifar10", "flowers", settings) == folders[1:]
    with pytest.raises(ReleaseError, match=r"has runs on flowers, pets; give the id of the run for petals$"):
        release_source.check_source("fastnet_cifar10", "petals", settings)
    folders.pop(0)
    assert release_source.check_source("fastnet_cifar10", "petals", settings) == folders
    folders[:] = [make_folder("food")]
    assert release_source.check_source("fastnet_cifar10", "food", settings) == folders
    folders.append(make_folder("food11"))
    with pytest.raises(ReleaseError, match=r"has runs on food, food11; give the id of the run for food$"):
        release_source.check_source("fastnet_cifar10", "food", settings)
    folders[:] = [make_folder("pets")]
    with pytest.raises(ReleaseError, match=r"its finished runs are on pets and not on food1\[01\] images"):
        release_source.check_source("fastnet_cifar10", "food", settings)


def test_a_champion_that_does_not_work_here_is_replaced_by_force_only(exported, tmp_path):
    bundle = make_two_variants(tmp_path, golden_error=0.5, fp32_golden_error=0.5)
    champion = Champion("7", read_bundle(bundle), bundle)
    with pytest.raises(ReleaseError, match="golden images are answered otherwise than at the release"):
        judge(exported, champion)
    assert judge(exported, champion, "forced").champion_version is None
