import pytest

from model_code.training.schedules import cosine_factor


def test_cosine_starts_at_one_is_half_in_the_middle_and_falls_towards_zero():
    factors = [cosine_factor(step, 100) for step in range(100)]
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.001
    assert factors == sorted(factors, reverse=True)


def test_warmup_rises_in_a_straight_line_and_joins_the_cosine():
    assert [cosine_factor(step, 104, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert cosine_factor(54, 104, 4) == pytest.approx(0.5)
