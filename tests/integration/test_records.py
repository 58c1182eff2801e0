"""`--format json` and `--quiet` of `train` and `release`: results alone on standard output, errors in one line."""

import json
import re

import pytest

TRAIN = (
    "resnet18_cifar10_exp",
    *("--data", "shapes", "--epochs", 1, "--limit-train", 100, "--set", "batch_size=50", "--set", "limit_test=50"),
)


@pytest.mark.usefixtures("shapes")
def test_train_and_release_print_their_results_alone(darkroom):
    trained = darkroom("train", *TRAIN, "--format", "json")
    assert trained.status == 0, trained.err
    record = json.loads(trained.out)
    assert (record["recipe"], record["dataset"], record["epochs"]) == ("resnet18_cifar10_exp", "shapes", 1)
    assert 0 <= record["test/accuracy"] <= 1
    assert record["run_id"] in trained.err

    released = darkroom("release", record["run_id"], "--as", "records", "--format", "json")
    assert released.status == 0, released.err
    champion = json.loads(released.out)
    assert (champion["model"], champion["run_id"], champion["is_champion"]) == ("records", record["run_id"], True)
    assert released.err

    quiet = darkroom("train", *TRAIN, "--seed", 1, "--quiet")
    assert (quiet.status, quiet.err) == (0, "")
    assert quiet.out.startswith("resnet18_cifar10_exp  done in ")
    assert "next:" not in quiet.out
    [run_id] = re.findall(r"run ([0-9a-f]{32})", quiet.out)

    gate = ("--as", "records", "--min-gain", 0.9)
    refused = darkroom("release", run_id, *gate, "--format", "json", "--quiet")
    assert refused.status == 1
    verdict = json.loads(refused.out)
    assert (verdict["run_id"], verdict["is_champion"], verdict["champion_before"]) == (run_id, False, "1")
    assert re.fullmatch(r"darkroom: records: not promoted; .*\n", refused.err)


@pytest.mark.usefixtures("shapes")
def test_quiet_leaves_a_refusal_in_one_line(darkroom):
    refused = darkroom("train", *TRAIN, "--quiet", "--set", "batch_size=1000")
    assert (refused.status, refused.out) == (2, "")
    assert re.fullmatch(r"darkroom: .* training images are fewer than one batch of 1000; .*\n", refused.err)
