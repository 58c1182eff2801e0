"""How costs grow: the fit, and each measurement at small sizes."""

import pytest

from benchmarks.scale import QUANTITIES, fit


def test_a_power_law_is_found():
    sizes = (10, 100, 1000)
    for factor, exponent in ((3.0, 0.0), (0.02, 1.0), (1e-4, 1.5)):
        found = fit(sizes, [factor * size**exponent for size in sizes])
        assert found == pytest.approx((factor, exponent), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTITIES)
def test_each_quantity_is_measured(tmp_path, monkeypatch, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    measure = QUANTITIES[name][0]
    costs = measure(tmp_path, 20)
    assert costs
    assert all(cost > 0 for cost in costs.values()), costs
