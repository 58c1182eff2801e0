"""Tables of what is released."""

import json

import pytest

from flows.printing.inventory import print_history
from serving.bundle.store import Change

MEASURED = "accuracy 0.1 against 0.9 of version 1 on 100 test images"


@pytest.mark.parametrize(
    ("verdict", "shown"),
    [
        (f"{MEASURED}: promoted", f"{MEASURED}: promoted"),
        (f"{MEASURED}: not promoted: worse", f"{MEASURED}: not promoted: worse"),
        (
            f"forced; the gate: {MEASURED}: not promoted: worse; cat fell",
            f"forced; the gate: {MEASURED}: not promoted: worse; 1 more reason: --format json",
        ),
        (
            f"{MEASURED}: not promoted: worse; cat fell; dog fell",
            f"{MEASURED}: not promoted: worse; 2 more reasons: --format json",
        ),
        ("4 files verified; int8: the fastest here", "4 files verified; int8: the fastest here"),
    ],
)
def test_a_table_has_the_first_reason_of_a_verdict_and_json_has_all(verdict, shown, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    change = Change(
        number=1,
        action="promote",
        from_version=None,
        to_version="2",
        at="2026-11-30T22:14:14+00:00",
        by="me",
        why="",
        verdict=verdict,
    )
    print_history("pets", [change])
    assert capsys.readouterr().out.splitlines()[1].split("\t")[-1] == shown
    print_history("pets", [change], "json")
    assert json.loads(capsys.readouterr().out)["verdict"] == verdict
