"""Every kind of recipe through the real command, small: SimSiam, fine-tuning, untrained networks, random features."""

import json
import re

import pytest

SMALL = ("--profile", "smoke", "--set", "dataset=shapes")
RUN_LINE = re.compile(r"run ([0-9a-f]{32})")


@pytest.fixture(scope="module", autouse=True)
def _shapes(home, few_shapes):
    from model_code.data.add import add_dataset
    from model_code.settings import load_settings

    settings = load_settings()
    add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, progress=False)


def get_client():
    from model_code.settings import load_settings
    from model_code.tracking.store import open_store

    return open_store(load_settings())


def train(darkroom, recipe, *options):
    """The finished MLflow run of a recipe, and what was printed."""
    done = darkroom("train", recipe, *SMALL, *options)
    assert done.status == 0, done.err
    run = get_client().get_run(RUN_LINE.search(done.out).group(1))
    assert run.info.status == "FINISHED"
    assert run.data.tags["recipe"] == recipe
    return run, done.out


def test_a_backbone_is_pretrained_then_fine_tuned_and_released(darkroom, home):
    small = ("--set", "network=resnet18", "--limit-train", 200)
    orphan = darkroom("train", "simsiam_cifar10_finetuned", *SMALL, *small)
    assert orphan.status == 1
    assert "starts from simsiam_cifar10, which has no finished" in orphan.err

    source, out = train(darkroom, "simsiam_cifar10", *small, "--set", "batch_size=40", "--set", "knn_neighbours=20")
    metrics = source.data.metrics
    assert "kNN accuracy on validation" in out
    assert f"kNN at the start {metrics['validation/untrained_knn_accuracy']:.4f}" in out
    assert 0 < metrics["test/linear_accuracy"] < 1
    assert 0 < metrics["train/feature_std"] < 1.1 * 256**-0.5
    assert source.data.params["views.hue"] == "0.1"
    assert source.data.tags["kind"] == "simsiam"
    for head in ("knn", "linear"):
        released = darkroom("release", source.info.run_id, "--as", "shapes", "--mode", "dry_run", "--head", head)
        assert f"head: {head}" in released.out, released.err
        assert "fp32 on CPU: 100.00% of 200 test labels as PyTorch" in released.out

    # The MLP on top is new, and one epoch at a rate of nearly 0 moves nothing: the backbone is that of the first run.
    tuned, _ = train(
        darkroom,
        "simsiam_cifar10_finetuned",
        *(*small, "--set", "batch_size=40", "--epochs", 1, "--set", "learning_rate=1e-12"),
    )
    assert tuned.data.params["pretrained_weights"] == "recipe:simsiam_cifar10"
    record = json.loads((home / "checkpoints" / tuned.info.run_id / "run.json").read_text())
    assert record["pretrained_sha256"] == source.data.tags["weights_sha256"]
    assert tuned.data.tags["pretrained_sha256"] == source.data.tags["weights_sha256"]
    assert tuned.data.tags["pretrained_run_id"] == source.info.run_id
    import safetensors.torch

    before, after = (
        safetensors.torch.load_file(next((home / "checkpoints" / run.info.run_id).glob("best-*")))
        for run in (source, tuned)
    )
    name = "stages.0.conv1.weight"
    assert (before[name] - after[name]).abs().max() < 1e-6
    released = darkroom("release", tuned.info.run_id, "--as", "shapes", "--mode", "dry_run")
    assert "dry run, nothing was registered" in released.out, released.err
    refused = darkroom("release", tuned.info.run_id, "--as", "shapes", "--head", "knn")
    assert refused.status == 2
    assert "--head knn is for SimSiam runs" in refused.err
    assert "fp32 on CPU: 100.00% of" in released.out


def test_an_untrained_network_is_evaluated(darkroom):
    run, out = train(darkroom, "vit_b_16_imagenet_untrained", "--set", "limit_test=30")
    metrics = run.data.metrics
    assert metrics["validation/pictures"] == 30
    assert metrics["validation/accuracy"] == metrics["validation/correct"] / 30
    assert 1 <= metrics["validation/distinct_classes"] <= 10
    assert metrics["validation/peak_memory_bytes"] > 1e8
    assert f"{metrics['validation/correct']:.0f} of 30 right" in out
    assert run.data.tags["budget"].startswith("custom: dataset=shapes")
    refused = darkroom("release", run.info.run_id, "--as", "shapes")
    assert "leaves figures, not a classifier" in refused.err


def test_random_features_are_probed(darkroom):
    run, out = train(
        darkroom,
        "resnet18_cifar10_random_calibrated",
        *("--limit-train", 200, "--set", "limit_test=60", "--set", "linear.epochs=5", "--set", "mlp.epochs=5"),
    )
    metrics = run.data.metrics
    assert {"test/knn_accuracy", "test/linear_accuracy", "test/mlp_accuracy", "test/untrained_head_accuracy"} <= set(
        metrics
    )
    assert metrics["test/feature_width"] == 512
    assert f"kNN {metrics['test/knn_accuracy']:.4f}" in out
    assert run.data.tags["budget"].startswith("custom: ")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("simsiam_cifar10", "--limit-train", 50), 2, "50 training images are fewer than one batch"),
        (("simsiam_cifar10", "--set", "views.hue=2"), 2, "views.hue=2: "),
        (("simsiam_cifar10", "--set", "learning_rate=0.1"), 2, "has no setting 'learning_rate'"),
        (("resnet18_cifar10_random", "--set", "mlp.hidden_width=0"), 2, "mlp.hidden_width above 0"),
        (
            ("resnet18_cifar10_random", "--set", "linear.warmup_epochs=50"),
            2,
            "warmup_epochs=50 must be below epochs=20",
        ),
        (("resnet50_imagenet_untrained", "--limit-train", 3), 2, "limit_test limits the images that are evaluated"),
        (("simsiam_cifar10", "--set", "views.image_size=100000"), 2, "views.image_size=100000: "),
        (("simsiam_cifar10", "--set", "views.crop_aspect=[100, 200]"), 2, "views.crop_aspect"),
        (("resnet50_imagenet_untrained", "--epochs", 3), 2, "has no setting 'epochs'"),
        (("vit_b_16_imagenet_untrained", "--set", "image_size=33"), 2, "multiples of 16"),
        (("resnet18_food11", "--set", "image_size=64"), 2, "packed at 32 pixels and image_size=64 is larger"),
        (("resnet18_cifar10_exp", "--set", "pretrained_weights=recipe:nothing"), 2, "no recipe 'nothing'"),
    ],
)
def test_impossible_runs_are_one_line_and_leave_no_run(darkroom, arguments, status, message):
    client = get_client()
    [experiment] = [found for found in client.search_experiments() if found.name == "darkroom"]
    before = len(client.search_runs([experiment.experiment_id]))
    done = darkroom("train", arguments[0], *SMALL, *arguments[1:])
    assert done.status == status, done.err
    assert message in done.err.splitlines()[-1]
    assert len(client.search_runs([experiment.experiment_id])) == before


def test_what_was_tested_is_the_average_of_an_image_and_its_mirror_image(darkroom, home):
    import torch

    from model_code.data.cache import open_dataset
    from model_code.evaluation.metrics import measure, predict_logits
    from model_code.training.images import load_test
    from model_code.training.run_folder import open_run_folder
    from model_code.training.supervised import load_model

    small = ("--limit-train", 200, "--set", "batch_size=40", "--epochs", 1)
    run, _ = train(darkroom, "resnet18_cifar10_exp2", *small, "--set", "has_flip_averaging=true")
    folder = open_run_folder(home / "checkpoints", run.info.run_id)
    config = folder.record.config
    test = load_test(open_dataset("shapes", home / "cache"), config, torch.device("cpu"))
    losses = []
    for is_averaged in (True, False):
        one = config.model_copy(update={"has_flip_averaging": is_averaged})
        model = load_model(one, 10, 32, folder.path / folder.result.best_weights)
        losses.append(measure(predict_logits(model, test.images_NHWC), test.labels_N).loss)
    assert run.data.metrics["test/loss"] == pytest.approx(losses[0], rel=1e-5)
    assert run.data.metrics["test/loss"] != pytest.approx(losses[1], rel=1e-5)
    assert run.data.metrics["train/pictures"] == 160
    assert run.data.metrics["validation/pictures"] == 40


def test_settings_of_train_all_reach_the_recipes_that_have_them(darkroom):
    options = ("--profile", "smoke", "--only", "*_cifar10_random", "--set", "dataset=food11")
    refused = darkroom("train-all", *options, "--set", "epochs=1")
    assert refused.status == 2
    assert "--set epochs=1: none of these recipes has a setting 'epochs'" in refused.err
    taken = darkroom("train-all", *options, "--set", "batch_size=7")
    assert "every recipe would be skipped: the images of food11 are not here" in taken.err


def test_recipes_whose_images_are_not_here_are_skipped(darkroom, home):
    (home / "recipes").mkdir(exist_ok=True)
    (home / "recipes" / "drawn.toml").write_text('from = "pixels_cifar10_random"\n[settings]\ndataset = "shapes"\n')
    done = darkroom("train-all", "--profile", "smoke", "--only", "*food11*", "--only", "drawn")
    assert done.status == 0, done.err
    before, _, after = done.out.partition("[1/")
    assert "unless these are here at their turn, left out:\nfood11  skip  " in before
    assert after.count("skipped: data set 'food11' is not in") >= 3
    assert "darkroom data add food11 --from PATH" in done.out
    assert done.out.splitlines()[-1] == "next: darkroom report, darkroom ui"
