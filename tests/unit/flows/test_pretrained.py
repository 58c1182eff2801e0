"""Choice of the run that a recipe starts from; `flows.experiments.pretrained` needs no Prefect."""

import shutil
import uuid

import pytest

from flows.experiments import pretrained
from model_code.data.add import add_dataset
from model_code.data.cache import open_dataset
from model_code.errors import DownloadError, TrainingError
from model_code.recipes.catalog import build_config
from model_code.training.run_folder import JOURNAL_FILE, RunRecord, RunResult, create_run_folder
from serving.bundle.store import hash_file
from tests.unit.serving.tiny_bundle import paint
from tests.unit.tracking.small_store import make_settings

SOURCE, TUNED = "simsiam_cifar10", "simsiam_cifar10_finetuned"
ON_SHAPES = {"dataset": "shapes"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return make_settings(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def checksum(settings):
    folders = {"cache_dir": settings.cache_dir, "data_dir": settings.data_dir}
    return add_dataset("shapes", **folders, progress=False).dataset.checksum


@pytest.fixture
def add_run(settings, checksum):
    """Make the folder of a finished SimSiam run; its id comes back. All are gone after the test."""

    def add(accuracy, profile="smoke", changes=(), data_checksum=checksum, is_offline=False):
        config = build_config(SOURCE, "smoke", ON_SHAPES | dict(changes)).model_copy(update={"profile": profile})
        run_id = uuid.uuid4().hex
        record = RunRecord(run_id=run_id, data_checksum=data_checksum, config=config)
        folder = create_run_folder(settings.checkpoints_dir, record)
        if is_offline:
            (folder.path / JOURNAL_FILE).touch()
        weights = folder.path / "best-0001.safetensors"
        weights.write_bytes(run_id.encode())
        folder.complete(
            RunResult(
                run_id=run_id,
                kind="simsiam",
                recipe=SOURCE,
                profile=profile,
                dataset="shapes",
                metrics={"validation/best_accuracy": accuracy},
                best_weights=weights.name,
                weights_sha256=hash_file(weights),
                seconds=1.0,
            )
        )
        return run_id

    yield add
    shutil.rmtree(settings.checkpoints_dir, ignore_errors=True)


def find_pretrained(config, settings):
    return pretrained.find_pretrained(config, open_dataset("shapes", settings.cache_dir), settings)


def find(settings, profile="smoke", **changes):
    """The run that the fine-tuned recipe starts from, of a network as small as the smoke runs'."""
    config = build_config(TUNED, "smoke", ON_SHAPES | changes).model_copy(update={"profile": profile})
    dataset = open_dataset(config.dataset, settings.cache_dir)
    found = pretrained.find_pretrained(config, dataset, settings)
    assert found.source.endswith(f"{found.run_id}/best-0001.safetensors")
    return found.run_id


def test_the_best_run_is_started_from(settings, add_run):
    add_run(0.3)
    best = add_run(0.5)
    add_run(0.4)
    assert find(settings) == best


def test_a_documented_run_starts_only_from_a_documented_one(settings, add_run):
    add_run(0.8, "custom")
    smoke, full = add_run(0.9, "smoke"), add_run(0.1, "full")
    assert [find(settings, profile) for profile in ("smoke", "full", "custom")] == [smoke, full, full]


def test_a_custom_run_takes_a_smoke_run_last(settings, add_run):
    smoke = add_run(0.9, "smoke")
    assert find(settings, "custom") == smoke
    custom = add_run(0.2, "custom")
    assert find(settings, "custom") == custom
    with pytest.raises(TrainingError, match=r"^simsiam_cifar10_finetuned starts from simsiam_cifar10, which has no"):
        find(settings, "full")


def test_a_run_with_feedback_starts_from_one_without(settings, add_run, tmp_path):
    (tmp_path / "circle").mkdir()
    (tmp_path / "circle/1.png").write_bytes(paint())
    folders = {"cache_dir": settings.cache_dir, "data_dir": settings.data_dir}
    extended = add_dataset("shapes-with-feedback", [tmp_path], **folders, progress=False).dataset
    on_base = add_run(0.3)
    add_run(0.9, data_checksum="f" * 64)
    assert find(settings, dataset=extended.name) == on_base
    on_extended = add_run(0.4, changes={"dataset": extended.name}, data_checksum=extended.checksum)
    assert find(settings, dataset=extended.name) == on_extended
    assert find(settings) == on_base


def test_runs_that_do_not_fit_are_passed_over(settings, add_run):
    fitting = add_run(0.1)
    add_run(0.9, changes={"network": "resnet18_improved"})
    add_run(0.9, changes={"split_seed": 7})
    add_run(0.9, changes={"validation_fraction": 0.1})
    add_run(0.9, changes={"limit_train": 1000})  # learned from what is held out now
    add_run(0.9, data_checksum="f" * 64)
    damaged = add_run(0.9)
    weights = settings.checkpoints_dir / damaged / "best-0001.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    removed = add_run(0.9)
    (settings.checkpoints_dir / removed / "best-0001.safetensors").unlink()
    assert find(settings) == fitting


def test_a_simsiam_run_continues_one(settings, add_run):
    best = add_run(0.5)
    config = build_config(SOURCE, "smoke", ON_SHAPES | {"pretrained_weights": f"recipe:{SOURCE}"})
    assert pretrained.name_start(config) == SOURCE
    assert find_pretrained(config, settings).run_id == best


def test_the_network_that_gives_pseudo_labels_saw_images_as_they_are_now(settings, add_run):
    add_run(0.9)  # its network saw images normalised with other statistics
    same = add_run(0.2, changes={"mean": (0.5, 0.5, 0.5)})
    changes = {"pseudo_label_confidence": 0.9, "mean": (0.5, 0.5, 0.5)}
    # SimSiam's config has no image_size, as one without has none.
    assert find(settings, **changes) == same
    assert find(settings, mean=(0.5, 0.5, 0.5)) != same


def test_an_offline_run_is_started_from_only_offline(settings, checksum, add_run):
    in_mlflow, offline = add_run(0.3), add_run(0.9, is_offline=True)
    assert find(settings) == in_mlflow
    dataset = open_dataset("shapes", settings.cache_dir)
    config = build_config(TUNED, "smoke", ON_SHAPES)
    assert pretrained.find_pretrained(config, dataset, settings, is_offline=True).run_id == offline


def test_files_are_hashed_and_nothing_is_nothing(settings, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"x")
    config = build_config(TUNED, "full", ON_SHAPES | {"pretrained_weights": str(file)})
    found = find_pretrained(config, settings)
    assert (found.source, found.run_id, found.sha256) == (str(file), None, hash_file(file))
    assert find_pretrained(build_config("resnet18_cifar10_exp"), settings) is None
    assert find_pretrained(build_config(SOURCE), settings) is None
    with pytest.raises(TrainingError, match="no such file"):
        find_pretrained(config.model_copy(update={"pretrained_weights": "/nowhere.pth"}), settings)


def test_an_offline_run_downloads_no_weights(settings, checksum, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = build_config("resnet18_cifar10_exp9", "smoke", ON_SHAPES)
    dataset = open_dataset("shapes", settings.cache_dir)
    assert pretrained.find_pretrained(config, dataset, settings).source == "torchvision"
    with pytest.raises(DownloadError, match="not downloaded with --offline; bring the file"):
        pretrained.find_pretrained(config, dataset, settings, is_offline=True)
    there = pretrained.find_torchvision_download()
    there.parent.mkdir(parents=True)
    there.touch()
    assert tmp_path in there.parents
    assert pretrained.find_pretrained(config, dataset, settings, is_offline=True).source == "torchvision"
