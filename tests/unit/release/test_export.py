from torch import nn

from model_code.models.view_average import ViewAverage
from model_code.release.export import choose_measured


def test_a_model_that_averages_views_is_compared_with_what_validation_measured():
    network = nn.Identity()
    average = ViewAverage(network)
    assert choose_measured(average, "validation") is network
    assert choose_measured(average, "test") is average
    assert choose_measured(network, "validation") is network
