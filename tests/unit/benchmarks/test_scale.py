"""Growth of costs: the extrapolation, and each measurement at a small size."""

import pytest

from benchmarks.scale import QUANTITIES, extrapolate


def test_costs_go_on_in_a_straight_line():
    sizes = (1_000, 10_000, 100_000)
    linear = [0.05 + 2e-5 * size for size in sizes]
    exponent, expected = extrapolate(sizes, linear, 10**8)
    assert expected == pytest.approx(2000.05)
    assert 0.85 < exponent < 1
    assert extrapolate(sizes, [3.0] * 3, 10**8) == pytest.approx((0, 3))
    assert extrapolate(sizes, [size**2 for size in sizes], 10)[0] == pytest.approx(2)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTITIES)
def test_each_quantity_is_measured(tmp_path, monkeypatch, name):
    for variable in ("MLFLOW_TRACKING_URI", "DARKROOM_INBOX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    measure = QUANTITIES[name][0]
    costs = measure(tmp_path, 20)
    assert costs
    assert all(cost > 0 for cost in costs.values()), costs
