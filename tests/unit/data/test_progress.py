import io
import time
from contextlib import redirect_stderr

import pytest

from flows.printing.narration import narrating
from model_code.data.progress import FIRST_LINE_S, show_progress


class Output(io.StringIO):
    """Output that is no terminal, with the time of each line."""

    def __init__(self):
        super().__init__()
        self.begun_s, self.times_s = time.monotonic(), []

    def write(self, text):
        self.times_s.append(time.monotonic() - self.begun_s)
        return super().write(text)


@pytest.fixture
def output():
    return Output()


def test_a_log_file_gets_a_line_within_three_seconds_and_few_more(output, monkeypatch):
    monkeypatch.setattr("model_code.data.progress.SECONDS_BETWEEN_LINES", 0.5)
    with redirect_stderr(output), show_progress("packing pets", 100, "images") as advance:
        advance(20)
        time.sleep(FIRST_LINE_S + 0.8)  # no image is done meanwhile
    first, second, last = output.getvalue().splitlines()
    assert first.startswith("packing pets: 20 of 100 images in 2.")
    assert second.startswith("packing pets: 20 of 100 images in 2.")
    assert last.startswith("packing pets: 20 images in ")
    assert output.times_s[0] < 3


@pytest.mark.parametrize("total", [0, 4_000_000])
def test_a_download_has_sizes(output, monkeypatch, total):
    monkeypatch.setattr("model_code.data.progress.FIRST_LINE_S", 0.05)
    with redirect_stderr(output), show_progress("downloading pets.tar", total, "B") as advance:
        advance(2_500_000)
        time.sleep(0.3)
    first, last = output.getvalue().splitlines()
    assert first.startswith("downloading pets.tar: 2.5 MB" + (" of 4.0 MB in " if total else " in "))
    assert last.startswith("downloading pets.tar: 2.5 MB in ")


@pytest.mark.parametrize("is_shown", [False, True])
def test_quiet_work_prints_nothing(output, monkeypatch, is_shown):
    monkeypatch.setattr("model_code.data.progress.FIRST_LINE_S", 0.01)
    with (
        redirect_stderr(output),
        narrating("table", is_quiet=is_shown),
        show_progress("packing", 2, "images", is_shown) as advance,
    ):
        advance(1)
        time.sleep(0.1)
    assert output.getvalue() == ""


def test_work_that_fails_has_no_last_line(output):
    with pytest.raises(ValueError, match="broken"), redirect_stderr(output), show_progress("packing", 2, "images"):
        raise ValueError("broken")
    assert output.getvalue() == ""
