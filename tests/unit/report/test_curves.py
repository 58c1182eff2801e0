import re

import pytest

from model_code.report.curves import BACKBONE_FIGURES, build_learning_curves, build_simsiam_curves
from model_code.report.document import Folded, ImageGroup, Paragraph, Table
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
    assert table.columns[1:5] == ("kNN", "kNN, top 5", "linear", "linear, augmented")
    assert set(table.columns[1:5]) <= set(BACKBONE_FIGURES.values())
    shown = [[row[0].detail, *(cell.text for cell in row[:5])] for row in table.rows]
    assert shown == [
        ["test images", "a", "50.00 %", "90.00 %", "-", "55.00 %"],
        ["validation images", "b", "60.00 %", "-", "65.00 %", "-"],
    ]


def read_learning_curves(*groups):
    return {
        block.title: block
        for block in build_learning_curves(make_collection(*groups)).blocks
        if isinstance(block, ImageGroup)
    }


def test_no_two_images_have_one_file_name():
    histories = {
        f"{split}/{what}": ((1, 0.5), (2, 0.6)) for split in ("train", "validation") for what in ("accuracy", "loss")
    }
    run = make_run("swin_cifar10_published", budget="custom: epochs=2", histories=histories)
    blocks = build_learning_curves(make_collection([run])).blocks
    groups = [block.block if isinstance(block, Folded) else block for block in blocks]
    names = [image.name for group in groups if isinstance(group, ImageGroup) for image in group.images]
    assert len(names) > 2
    assert len(set(names)) == len(names)


def test_a_published_curve_stands_alone_where_ours_was_not_run():
    nothing, folded = build_learning_curves(make_collection()).blocks
    assert nothing.text == "No curve of a supervised run yet: not run."
    assert folded.title == "swin_cifar10_published: the published run; no full run of ours"
    group = folded.block
    assert group.run_ids == ()
    assert len(group.images) == 4
    assert all("published" in image.alt and "ours" not in image.alt for image in group.images)
    assert group.caption.startswith("Validation accuracy: published highest 67.70 % after epoch 19, last 67.70 % after")


def test_a_published_curve_stands_beside_ours():
    alone = build_learning_curves(make_collection()).blocks[-1].block
    histories = {"validation/accuracy": ((1, 0.5), (2, 0.66), (3, 0.64)), "train/loss": ((1, 1.5), (2, 1.0), (3, 0.5))}
    run = make_run("swin_cifar10_published", histories=histories)
    other = make_run("resnet18_cifar10_exp", histories=histories)
    groups = read_learning_curves([run], [other])
    assert list(groups) == ["resnet18_cifar10_exp (full)", "swin_cifar10_published (full), beside the published run"]
    beside = groups["swin_cifar10_published (full), beside the published run"]
    assert beside.run_ids == (run.run_id,)
    assert "; ours highest 66.00 % after epoch 2, last 64.00 % after epoch 3. " in beside.caption
    is_redrawn = [mine.png != theirs.png for mine, theirs in zip(beside.images, alone.images, strict=True)]
    assert is_redrawn == [image.name.endswith(("train-loss", "validation-accuracy")) for image in beside.images]


@pytest.mark.parametrize(("epochs", "is_drawn"), [(1, False), (2, True)])
def test_one_epoch_is_no_curve(epochs, is_drawn):
    points = tuple((epoch, 0.5) for epoch in range(1, epochs + 1))
    histories = dict.fromkeys(("validation/accuracy", "validation/loss", "validation/knn_accuracy"), points)
    runs = [[make_run("net", histories=histories)], [make_run("backbone", kind="simsiam", histories=histories)]]
    collection = make_collection(*runs)
    assert bool(read_learning_curves(*runs)) == is_drawn
    said = [block.text for block in build_learning_curves(collection).blocks if isinstance(block, Paragraph)]
    assert said == ([] if is_drawn else ["No curve of a supervised run yet: none has two epochs."])
    drawn = [block for block in build_simsiam_curves(collection).blocks if isinstance(block, ImageGroup)]
    assert bool(drawn) == is_drawn
