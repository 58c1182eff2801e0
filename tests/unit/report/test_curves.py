import re

import pytest

from model_code.report.curves import build_simsiam_curves
from model_code.report.document import ImageGroup, Paragraph
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
