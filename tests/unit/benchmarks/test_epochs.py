"""The contenders that train: each of ours runs."""

import pytest
import torch

from benchmarks.comparisons import epochs


@pytest.mark.slow
@pytest.mark.parametrize("compare", [epochs.compare_supervised, epochs.compare_simsiam, epochs.compare_checkpoint])
def test_every_contender_measures_something(compare, tmp_path, monkeypatch):
    monkeypatch.setattr(epochs, "IMAGES", 128)  # one batch
    comparison = compare(torch.device("cpu"), tmp_path)
    assert all(measure() > 0 for name, measure in comparison.contenders.items() if "workers" not in name)
