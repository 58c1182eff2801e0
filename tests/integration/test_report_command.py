"""`darkroom report` as people call it."""


def test_a_report_of_what_there_is(darkroom, home, tmp_path):
    done = darkroom("report", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert str(tmp_path / "out" / "report.html") in done.out
    assert str(tmp_path / "out" / "report.md") in done.out
    assert "in darkroom-reports" in done.out
    assert "not run" in (tmp_path / "out" / "report.html").read_text()
    assert list(home.rglob("artifacts/*/artifacts/report.html"))


def test_a_place_that_cannot_be_written_to(darkroom, tmp_path):
    (tmp_path / "taken").write_text("a file")
    done = darkroom("report", "--out", tmp_path / "taken")
    assert done.status == 1
    [line] = [line for line in done.err.splitlines() if line.startswith("darkroom: ")]
    assert "the report cannot be written to" in line
    assert line.endswith("name another --out")
    assert "Traceback" not in done.err
