import math

import pytest


def test_an_exact_line_is_extrapolated_to_no_distortion():
    from benchmarks.recompression import extrapolate

    rows = [{"distortion": one, "accuracies": [1 - 0.1 * math.exp(0.05 * one)] * 2} for one in (10, 14, 18)]
    accuracy, ratio, interval = extrapolate(rows)
    assert accuracy == pytest.approx(0.9)
    assert ratio == pytest.approx(math.exp(0.5))
    assert interval == pytest.approx((ratio, ratio), abs=1e-6)


def test_qualities_off_the_line_widen_the_interval():
    from benchmarks.recompression import extrapolate

    rows = [
        {"distortion": 10.346, "accuracies": [0.8024, 0.7978]},
        {"distortion": 13.929, "accuracies": [0.7874, 0.7878]},
        {"distortion": 15.480, "accuracies": [0.7574, 0.7502]},
        {"distortion": 18.831, "accuracies": [0.7118, 0.7088]},
    ]
    accuracy, ratio, interval = extrapolate(rows)
    assert (round(accuracy, 3), round(ratio, 2)) == (0.879, 1.6)
    assert [round(end, 2) for end in interval] == [1.06, 2.4]
