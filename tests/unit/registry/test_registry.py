from functools import cache
from pathlib import Path

import mlflow
import mlflow.onnx
import numpy as np
import onnxruntime
import pytest
import torch

from model_code.errors import UsageError
from model_code.export.onnx_export import OPSET, export_onnx
from model_code.export.parity import measure_parity
from model_code.registry.versions import (
    CHAMPION,
    RELEASE_NAMES,
    check_release_name,
    describe,
    get_champion,
    register_version,
    set_champion,
)
from model_code.tracking.provenance import read_versions
from model_code.tracking.store import EXPERIMENT
from model_code.training.supervised import build_model
from serving.bundle import MANIFEST_FILE, MODEL_FILE, Manifest, hash_file, read_bundle, write_bundle
from tests.unit.training.small_runs import CLASSES, draw_pictures, make_config

PICTURES = 12


@pytest.fixture(scope="module")
def client(store):
    return store[1]


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Export the network of a seed, each once; its file and parity come back."""

    @cache
    def run(seed):
        torch.manual_seed(seed)
        model = build_model(make_config(), len(CLASSES), 8).eval()
        model_file = tmp_path_factory.mktemp("export") / MODEL_FILE
        export_onnx(model, 8, model_file)
        pictures = draw_pictures(PICTURES)
        return model_file, measure_parity(model, model_file, "test", pictures.images_NHWC, pictures.labels_N)

    return run


@pytest.fixture(scope="module")
def make_bundle(store, export):
    """Write the bundle of the network of a seed and of a run that MLflow knows."""
    settings, client = store
    experiment = client.get_experiment_by_name(EXPERIMENT)

    def make(name, seed=0, run_id=None):
        model_file, parity = export(seed)
        manifest = Manifest(
            name=name,
            classes=CLASSES,
            image_size=8,
            resize_size=8,
            precision="fp32",
            opset=OPSET,
            sha256=hash_file(model_file),
            size_bytes=model_file.stat().st_size,
            recipe="tiny_pets_test",
            run_id=run_id or client.create_run(experiment.experiment_id).info.run_id,
            accuracy_fraction=0.875,
            parity=parity.to_dict(),
            versions=read_versions(),
            created="2026-01-02T03:04:05+00:00",
        )
        folder = write_bundle(settings.bundles_dir, model_file, manifest)
        return folder, read_bundle(folder)

    return make


@pytest.fixture(scope="module")
def released(client, make_bundle):
    """(folder, manifest, version) of a bundle that is registered and champion."""
    folder, manifest = make_bundle("cifar10")
    version = register_version(client, folder, manifest)
    set_champion(client, manifest.name, version)
    return folder, manifest, version


def download(name):
    """Return the folder with the files of the champion."""
    return Path(mlflow.artifacts.download_artifacts(f"models:/{name}@{CHAMPION}"))


def test_the_version_says_what_it_is(client, released):
    _, manifest, version = released
    registered = client.get_model_version("cifar10", version)
    assert registered.run_id == manifest.run_id
    assert registered.tags == {"sha256": manifest.sha256, "recipe": "tiny_pets_test", "precision": "fp32"}
    assert registered.description == describe(manifest)
    assert registered.status == "READY"


def test_description_tells_accuracy_and_difference(released):
    _, manifest, _ = released
    worst = max(batch["max_difference"] for batch in manifest.parity["batches"].values())
    assert describe(manifest) == (
        f"tiny_pets_test, test accuracy 0.8750, fp32, ONNX differs from PyTorch by at most {worst:.1e}"
    )
    assert describe(manifest.model_copy(update={"accuracy_fraction": None})).startswith("tiny_pets_test, not tested, ")


def test_registering_twice_gives_the_same_version(client, released):
    folder, manifest, version = released
    runs_before = len(client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id]))
    assert register_version(client, folder, manifest) == version
    assert [str(found.version) for found in client.search_model_versions("name = 'cifar10'")] == [version]
    assert len(client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])) == runs_before
    assert mlflow.active_run() is None


def test_another_model_or_run_is_another_version(client, make_bundle):
    bundles = [make_bundle("shapes", seed=1)]
    bundles.append(make_bundle("shapes", seed=2, run_id=bundles[0][1].run_id))
    bundles.append(make_bundle("shapes", seed=2))
    for _ in range(2):
        assert [register_version(client, *bundle) for bundle in bundles] == ["1", "2", "3"]


def test_registering_starts_no_run(client, make_bundle):
    folder, manifest = make_bundle("runs")
    experiments = [found.experiment_id for found in client.search_experiments()]
    before = len(client.search_runs(experiments))
    register_version(client, folder, manifest)
    assert len(client.search_runs([found.experiment_id for found in client.search_experiments()])) == before
    assert mlflow.active_run() is None


def test_the_champion_moves_and_names_the_one_before(client, make_bundle):
    assert get_champion(client, "food") is None
    folder, manifest = make_bundle("food", seed=1)
    first = register_version(client, folder, manifest)
    assert get_champion(client, "food") is None
    assert set_champion(client, "food", first) is None
    folder, manifest = make_bundle("food", seed=2)
    second = register_version(client, folder, manifest)
    assert str(get_champion(client, "food").version) == first
    assert set_champion(client, "food", second) == first
    assert str(get_champion(client, "food").version) == second
    assert set_champion(client, "food", first) == second


def test_the_alias_leads_to_the_version(client, released):
    _, manifest, version = released
    found = client.get_model_version_by_alias("cifar10", CHAMPION)
    assert (str(found.version), found.run_id) == (version, manifest.run_id)
    assert client.get_registered_model("cifar10").aliases.keys() == {CHAMPION}


def test_the_registered_file_is_that_of_the_bundle(released):
    folder, manifest, _ = released
    files = download("cifar10")
    [model_file] = files.rglob("*.onnx")
    assert model_file.read_bytes() == (folder / MODEL_FILE).read_bytes()
    [manifest_file] = files.rglob(MANIFEST_FILE)
    assert Manifest.model_validate_json(manifest_file.read_bytes()) == manifest
    requirements = (files / "requirements.txt").read_text().split()
    assert f"onnxruntime-gpu=={manifest.versions['onnxruntime-gpu']}" in requirements
    assert not any(line.startswith("onnxruntime==") for line in requirements)


def test_the_registered_model_answers_like_the_bundle(released):
    folder, _, _ = released
    loaded = mlflow.onnx.load_model(f"models:/cifar10@{CHAMPION}")
    images = draw_pictures(PICTURES, seed=9).images_NHWC.numpy()
    answers = [
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]
        for model in (loaded.SerializeToString(), str(folder / MODEL_FILE))
    ]
    assert answers[0].shape == (PICTURES, len(CLASSES))
    assert np.array_equal(*answers)
    assert np.ptp(answers[0], axis=0).max() > 0


def test_the_signature_is_that_of_the_graph(released):
    inputs, outputs = (
        getattr(mlflow.models.get_model_info(f"models:/cifar10@{CHAMPION}").signature, side).inputs[0]
        for side in ("inputs", "outputs")
    )
    assert (inputs.type, inputs.shape) == (np.dtype("uint8"), (-1, 8, 8, 3))
    assert (outputs.type, outputs.shape) == (np.dtype("float32"), (-1, len(CLASSES)))


def test_release_names():
    assert {name: check_release_name(name) for name in RELEASE_NAMES} == RELEASE_NAMES
    assert set(RELEASE_NAMES) >= {"cifar10", "food"}
    with pytest.raises(UsageError, match=r"^--as 'cifar': choose one of cifar10, food, "):
        check_release_name("cifar")


def test_no_champion_of_a_name_that_is_not_there(client):
    assert get_champion(client, "nothing") is None
