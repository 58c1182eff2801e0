"""The long-tailed set and the summary of its runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.imbalance import PLAIN, VALIDATION_IMAGES, VARIANTS, count_tail, summarise, take_classes
from model_code.data.cache import PackedDataset, PackedSplit
from model_code.evaluation.metrics import Report


def test_the_tail_falls_to_a_hundredth():
    assert count_tail(1000, 5) == [1000, 316, 100, 32, 10]
    assert next(iter(VARIANTS)) == PLAIN


def test_classes_are_drawn_apart_and_numbered_anew():
    labels_N = np.arange(300) % 3
    images_NHWC = np.arange(300, dtype=np.uint16).view(np.uint8).reshape(300, 1, 1, 2)
    split = PackedSplit(images_NHWC, labels_N)
    dataset = PackedDataset("x", ("a", "b", "c"), 1, {"train": split, "test": split}, "", "", Path())
    drawn = take_classes(dataset, ("c", "a"), [30, 2], seed=0)
    rows = {name: one.images_NHWC.view(np.uint16).ravel() for name, one in drawn.splits.items()}
    for name, one in drawn.splits.items():
        assert [("c", "a")[label] for label in one.labels_N] == ["abc"[row % 3] for row in rows[name]]
    assert np.bincount(drawn.splits["train"].labels_N).tolist() == [30, 2]
    assert np.bincount(drawn.splits["validation"].labels_N).tolist() == [VALIDATION_IMAGES] * 2
    assert len(rows["test"]) == 200
    assert not set(rows["train"]) & set(rows["validation"])
    other = take_classes(dataset, ("c", "a"), [30, 2], seed=1).splits["train"].images_NHWC
    assert other.tolist() != drawn.splits["train"].images_NHWC.tolist()


def test_differences_are_paired_by_seed():
    report = Report(10, 1.0, 0.5, 1.0, 0.4, (1.0, 0.0), np.zeros((2, 2), np.int64))
    plain = [report, replace(report, macro_f1=0.2)]
    row = summarise("other", [replace(report, macro_f1=0.5), replace(report, macro_f1=0.4)], plain)
    assert (row["n"], row["macro_f1"], row["difference"]) == (2, pytest.approx(0.45), pytest.approx(0.15))
    low, high = row["interval"]
    assert low < 0.15 < high
    assert summarise("other", [report], [report])["interval"] is None
