import os

import pytest

from model_code.errors import DataError
from tests.unit.tracking.small_store import mlflow_given_back


@pytest.fixture
def flow(tmp_path, monkeypatch):
    """The flow without Prefect, in a home without runs."""
    with mlflow_given_back():
        monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))
        from flows.report import report_flow

        yield report_flow.fn


def test_no_runs_at_all(flow, tmp_path, capsys):
    from flows.reports import print_report

    summary = flow(tmp_path / "out")
    assert summary.run_count == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["report.html", "report.md"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count("| not run |") > 39
    assert "0 shown here of 0 finished ones" in text
    print_report(summary)
    printed = capsys.readouterr().out
    assert str(tmp_path / "out" / "report.html") in printed
    assert str(tmp_path / "out" / "report.md") in printed
    assert summary.run_id in printed


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_to(flow, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(DataError, match=r"the report cannot be written to .* name another --out$"):
        flow(tmp_path / "closed" / "report")
