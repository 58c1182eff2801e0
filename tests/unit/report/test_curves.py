import re

import pytest

from model_code.report.curves import BACKBONE_FIGURES, build_learning_curves, build_simsiam_curves
from model_code.report.document import ImageGroup, Paragraph, Table
from tests.unit.report.synthetic_runs import make_collection, make_run


def read_spread_line(*params):
    runs = [
        make_run("net", seed, kind="simsiam", params=one, histories={"train/feature_std": ((1, 0.01), (2, 0.02))})
        for seed, one in enumerate(params)
    ]
    section = build_simsiam_curves(make_collection(runs))
    [group] = [block for block in section.blocks if isinstance(block, ImageGroup)]
    [image] = group.images
    [first, *_] = [block.text for block in section.blocks if isinstance(block, Paragraph)]
    assert "2048" not in first
    return re.findall(r"line at (\S+) \((.+?\)?)\)", image.alt)


@pytest.mark.parametrize(("width", "spread"), [(256, "0.0625"), (2048, "0.0221"), (64, "0.125")])
def test_the_line_of_projections_that_point_everywhere_is_that_of_their_width(width, spread):
    params = {"embedding_width": str(width)}
    assert read_spread_line(params, params) == [("0", "collapsed: 0"), (spread, f"1/sqrt({width})")]


@pytest.mark.parametrize("params", [{}, {"embedding_width": "?"}, {"embedding_width": "0"}])
def test_without_a_width_there_is_no_such_line(params):
    assert read_spread_line(params) == [("0", "collapsed: 0")]


def test_the_accuracies_on_a_backbone_are_those_of_test_or_without_it_of_validation():
    tested = {"test/knn_accuracy": 0.5, "test/knn_top5_accuracy": 0.9, "test/augmented_linear_accuracy": 0.55}
    chosen = {"validation/knn_accuracy": 0.1, "validation/best_accuracy": 0.6, "validation/linear_accuracy": 0.65}
    groups = [[make_run("a", kind="simsiam", metrics=tested | chosen)], [make_run("b", kind="simsiam", metrics=chosen)]]
    [table] = [block for block in build_simsiam_curves(make_collection(*groups)).blocks if isinstance(block, Table)]
    assert table.columns[1:8] == ("images", *BACKBONE_FIGURES.values())
    shown = [[cell.text for cell in row[:8]] for row in table.rows]
    assert shown == [
        ["a", "test", "50.00 %", "90.00 %", "-", "-", "55.00 %", "-"],
        ["b", "validation", "60.00 %", "-", "65.00 %", "-", "-", "-"],
    ]


def read_learning_curves(*groups):
    return {
        block.title: block
        for block in build_learning_curves(make_collection(*groups)).blocks
        if isinstance(block, ImageGroup)
    }


def test_a_published_curve_stands_alone_where_ours_was_not_run():
    [(title, group)] = read_learning_curves().items()
    assert title == "swin_cifar10_published (no full run), beside the published run"
    assert group.run_ids == ()
    assert len(group.images) == 4
    assert all("published" in image.alt and "ours" not in image.alt for image in group.images)
    assert group.caption.startswith("Validation accuracy in %: published highest 67.7 after epoch 19, last 67.7 after")


def test_a_published_curve_stands_beside_ours():
    alone = read_learning_curves().popitem()[1]
    histories = {"validation/accuracy": ((1, 0.5), (2, 0.66), (3, 0.64)), "train/loss": ((1, 1.5), (2, 1.0), (3, 0.5))}
    run = make_run("swin_cifar10_published", histories=histories)
    other = make_run("resnet18_cifar10_exp", histories=histories)
    groups = read_learning_curves([run], [other])
    assert list(groups) == ["resnet18_cifar10_exp (full)", "swin_cifar10_published (full), beside the published run"]
    beside = groups["swin_cifar10_published (full), beside the published run"]
    assert beside.run_ids == (run.run_id,)
    assert "; ours highest 66 after epoch 2, last 64 after epoch 3. " in beside.caption
    is_redrawn = [mine.png != theirs.png for mine, theirs in zip(beside.images, alone.images, strict=True)]
    assert is_redrawn == [image.name.endswith(("train-loss", "validation-accuracy")) for image in beside.images]
