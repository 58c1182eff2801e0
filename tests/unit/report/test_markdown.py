import pytest

from model_code.report.document import Cell, Table
from model_code.report.markdown import _render_table


@pytest.mark.parametrize("is_code", [False, True])
def test_a_bar_in_a_name_ends_no_cell(is_code):
    *_, row = _render_table(
        Table("names", ("name", "count"), ((Cell("a|b", is_code=is_code), Cell("1")),))
    ).splitlines()
    assert row.replace("\\|", "").count("|") == 3
