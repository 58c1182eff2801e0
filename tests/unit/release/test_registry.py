import shutil
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pytest
from mlflow.exceptions import MlflowException

from model_code.errors import ReleaseError, UsageError
from model_code.release.names import check_release_name
from model_code.release.versions import (
    CHAMPION,
    delete_version,
    fetch_bundle,
    find_model_folder,
    get_champion,
    get_version,
    list_versions,
    read_verdict,
    register_version,
    write_verdict,
)
from model_code.tracking.store import EXPERIMENT
from serving.bundle.store import MANIFEST_FILE, MODEL_FILE, hash_file, read_bundle
from tests.unit.release.conftest import make_verdict
from tests.unit.serving.tiny_bundle import COLOURS, IMAGE_SIZE


@pytest.fixture(scope="module")
def released(client, make_bundle):
    """(folder, manifest, version) of a bundle that is registered and champion."""
    folder, manifest = make_bundle("cifar10")
    version = register_version(client, folder, manifest)
    client.set_registered_model_alias("cifar10", CHAMPION, version)
    return folder, manifest, version


def test_the_version_says_what_it_is(client, released):
    folder, manifest, version = released
    registered = client.get_model_version("cifar10", version)
    assert (registered.run_id, registered.status) == (manifest.run_id, "READY")
    logged = [one.model_id for one in client.get_run(manifest.run_id).outputs.model_outputs]
    assert registered.source in [f"models:/{one}" for one in logged], "the run's page shows it"
    assert registered.tags == {
        "sha256": manifest.fp32.sha256,
        "recipe": "mean_colour",
        "precisions": "fp32, int8",
        "bundle": folder.name,
        "manifest_sha256": hash_file(folder / MANIFEST_FILE),
    }


def test_with_a_version_the_model_that_was_logged_for_it_is_deleted(client, make_bundle):
    folder, manifest = make_bundle("deleted")
    version = register_version(client, folder, manifest)
    [logged] = client.get_run(manifest.run_id).outputs.model_outputs
    assert client.get_logged_model(logged.model_id).name == "deleted"
    stored = find_model_folder(client, "deleted", version)
    delete_version(client, "deleted", version)
    assert stored is not None
    assert (stored / MODEL_FILE).is_file(), "the caller removes the files"
    with pytest.raises(MlflowException, match="not found"):
        client.get_logged_model(logged.model_id)


def test_a_version_whose_logged_model_is_gone_can_be_deleted(client, make_bundle):
    folder, manifest = make_bundle("gone")
    version = register_version(client, folder, manifest)
    [logged] = client.get_run(manifest.run_id).outputs.model_outputs
    client.delete_logged_model(logged.model_id)
    delete_version(client, "gone", version)
    assert not client.search_model_versions("name = 'gone'")


def test_the_verdict_is_written_in_words_and_numbers(client, make_bundle):
    folder, manifest = make_bundle("verdict")
    version = register_version(client, folder, manifest)
    verdict = make_verdict()
    write_verdict(client, "verdict", version, verdict, "the *card*")
    registered = client.get_model_version("verdict", version)
    assert registered.description == "the *card*"
    assert registered.tags["verdict"] == verdict.summary
    assert float(registered.tags["accuracy"]) == verdict.challenger_accuracy
    assert max(map(len, registered.tags.values())) < 500, "numbers are in a file"
    place = f"runs:/{manifest.run_id}/release/verdict-version-{version}/verdict.json"
    assert type(verdict).model_validate_json(mlflow.artifacts.load_text(place)) == verdict
    assert read_verdict(registered) == verdict


def test_a_verdict_of_an_older_home_is_read_and_replaced(client, make_bundle):
    folder, manifest = make_bundle("older")
    version, verdict = register_version(client, folder, manifest), make_verdict()
    assert read_verdict(client.get_model_version("older", version)) is None
    client.set_model_version_tag("older", version, "verdict.json", verdict.model_dump_json())
    assert read_verdict(client.get_model_version("older", version)) == verdict
    newer = verdict.model_copy(update={"refusals": ("too small",)})
    assert newer != verdict
    write_verdict(client, "older", version, newer, "")
    registered = client.get_model_version("older", version)
    assert "verdict.json" not in registered.tags
    assert read_verdict(registered) == newer


def test_registering_twice_gives_the_same_version_and_no_run(client, released):
    folder, manifest, version = released
    experiments = [found.experiment_id for found in client.search_experiments()]
    assert client.get_experiment_by_name(EXPERIMENT).experiment_id in experiments
    runs_before = len(client.search_runs(experiments))
    assert register_version(client, folder, manifest) == version
    assert [str(found.version) for found in list_versions(client, "cifar10")] == [version]
    assert len(client.search_runs(experiments)) == runs_before
    assert mlflow.active_run() is None


def test_another_run_is_another_version(client, make_bundle):
    bundles = [make_bundle("shapes") for _ in range(2)]
    for _ in range(2):
        assert [register_version(client, *bundle) for bundle in bundles] == ["1", "2"]


def test_the_alias_leads_to_the_version(client, released):
    found = get_champion(client, "cifar10")
    assert (str(found.version), found.run_id) == (released[2], released[1].run_id)
    assert client.get_registered_model("cifar10").aliases.keys() == {CHAMPION}
    assert get_champion(client, "nothing") is None


def test_the_registry_holds_the_whole_bundle(client, released, bundles_dir, tmp_path):
    folder, manifest, version = released
    registered = get_version(client, "cifar10", version)
    assert fetch_bundle(client, bundles_dir, registered) == folder
    elsewhere = fetch_bundle(client, tmp_path, registered)
    assert elsewhere == tmp_path / "cifar10" / folder.name
    assert read_bundle(elsewhere) == manifest
    for file in folder.iterdir():
        assert (elsewhere / file.name).read_bytes() == file.read_bytes()


def test_a_damaged_bundle_is_fetched_anew(client, make_bundle, bundles_dir):
    folder, manifest = make_bundle("repaired")
    registered = get_version(client, "repaired", register_version(client, folder, manifest))
    (folder / MODEL_FILE).write_bytes(b"damaged")
    assert fetch_bundle(client, bundles_dir, registered) == folder
    assert read_bundle(folder) == manifest
    shutil.rmtree(folder)
    assert fetch_bundle(client, bundles_dir, registered) == folder
    assert read_bundle(folder) == manifest


def test_a_manifest_that_was_changed_here_is_not_believed(client, make_bundle, bundles_dir):
    folder, manifest = make_bundle("swapped")
    registered = get_version(client, "swapped", register_version(client, folder, manifest))
    text = (folder / MANIFEST_FILE).read_text()
    (folder / MANIFEST_FILE).write_text(
        text.replace('"red"', '"x"').replace('"green"', '"red"').replace('"x"', '"green"')
    )
    assert read_bundle(fetch_bundle(client, bundles_dir, registered)) == manifest


@pytest.mark.parametrize("tag", ["../../escaped", ""])
def test_a_bundle_tag_that_leaves_its_folder_is_refused(client, make_bundle, bundles_dir, tag):
    folder, manifest = make_bundle("tagged")
    number = register_version(client, folder, manifest)
    client.set_model_version_tag("tagged", number, "bundle", tag)
    with pytest.raises(ReleaseError, match="was not registered by this version of Darkroom"):
        fetch_bundle(client, bundles_dir, get_version(client, "tagged", number))


def test_a_bundle_that_is_damaged_everywhere_is_refused(client, make_bundle, bundles_dir):
    folder, manifest = make_bundle("lost")
    registered = get_version(client, "lost", register_version(client, folder, manifest))
    (folder / MODEL_FILE).write_bytes(b"damaged")
    client.set_model_version_tag("lost", registered.version, "manifest_sha256", "0" * 64)
    registered = get_version(client, "lost", registered.version)
    with pytest.raises(ReleaseError, match=r"^version 1 of lost cannot be verified: .*; in the registry: .*changed"):
        fetch_bundle(client, bundles_dir, registered)
    assert (folder / MODEL_FILE).read_bytes() == b"damaged"


def test_a_registry_without_the_files_is_one_error(client, make_bundle, tmp_path, monkeypatch):
    folder, manifest = make_bundle("emptied")
    registered = get_version(client, "emptied", register_version(client, folder, manifest))
    stored = Path(client.get_model_version_download_uri("emptied", registered.version).removeprefix("file://"))
    shutil.rmtree(stored)
    with pytest.raises(ReleaseError, match=r"^version 1 of emptied cannot be verified: .*; in the registry: "):
        fetch_bundle(client, tmp_path, registered)


def test_an_unknown_version_lists_the_known(client, released):
    with pytest.raises(ReleaseError, match=r"cifar10 has no version 99; registered: 1"):
        get_version(client, "cifar10", "99")


def test_the_registered_model_answers_like_the_bundle(released):
    folder, manifest, _ = released
    loaded = mlflow.onnx.load_model(f"models:/cifar10@{CHAMPION}")
    images_NHWC = np.random.default_rng(9).integers(0, 256, (12, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    answers = [
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"images": images_NHWC})[0]
        for model in (loaded.SerializeToString(), str(folder / MODEL_FILE))
    ]
    assert np.array_equal(*answers)
    assert np.ptp(answers[0], axis=0).max() > 0
    lines = Path(mlflow.pyfunc.get_model_dependencies(f"models:/cifar10@{CHAMPION}")).read_text().split()
    assert f"onnxruntime-gpu=={manifest.versions['onnxruntime-gpu']}" in lines
    assert not any(line.startswith("onnxruntime==") for line in lines)


def test_the_signature_is_that_of_the_graph(released):
    inputs, outputs = (
        getattr(mlflow.models.get_model_info(f"models:/cifar10@{CHAMPION}").signature, side).inputs[0]
        for side in ("inputs", "outputs")
    )
    assert (inputs.type, inputs.shape) == (np.dtype("uint8"), (-1, IMAGE_SIZE, IMAGE_SIZE, 3))
    assert (outputs.type, outputs.shape) == (np.dtype("float32"), (-1, len(COLOURS)))


def test_release_names():
    assert [check_release_name(name) for name in ("cifar10", "food", "shapes")] == ["cifar10", "food1[01]", "shapes"]
    assert check_release_name("my-flowers") == "*"
    for name in ("", "Flowers", "../x", "a b", "-x", "x" * 65):
        with pytest.raises(UsageError, match="cannot be a registered name; use up to 64 of a-z"):
            check_release_name(name)
