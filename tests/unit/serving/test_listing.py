"""Listings: what a terminal of 80 columns, a pipe and a program get of the same records."""

import csv
import io
import json

import click
import pytest
from rich.cells import cell_len

from serving import listing
from serving.listing import Column, print_listing

COLUMNS = (
    Column("recipe", "recipe"),
    Column("published", "published", lambda value: "-" if value is None else f"{value:.1%}"),
    Column("state", "state", colours={"failed": "red"}),
    Column("path", "path"),
    Column("why", "why", is_prose=True),
)
LONG = "imagenet_very_long_recipe_name_of_a_network"
RECORDS = [
    {"recipe": LONG, "published": 0.9, "state": "done", "path": "/a/" + "b" * 50, "why": None},
    {"recipe": "short", "published": None, "state": "failed", "path": "", "why": "its images are not here, " * 6},
]


def lay_out(*given):
    return list(map(click.unstyle, listing.lay_out(*given)))


@pytest.mark.parametrize("width", [20, 40, 80, 120, 400])
def test_no_word_is_broken_and_no_line_is_longer_than_it_must_be(width):
    lines = lay_out(COLUMNS, RECORDS, width)
    words = " ".join(lines).replace(",", " ").split()
    for record in RECORDS:
        for value in (record["recipe"], record["state"], *(record["path"], record["why"] or "")):
            assert set(value.replace(",", " ").split()) <= set(words), value
    longest = max(len(word) for record in RECORDS for word in str(record).split())
    assert max(map(len, lines)) <= max(width, longest + 4)


def test_what_does_not_fit_stands_below_its_row():
    lines = lay_out(COLUMNS, RECORDS, 80)
    assert lines[0].split() == ["recipe", "published", "state"]
    assert lines[2].split() == [LONG, "90.0%", "done"]
    assert lines[3].strip() == f"path: {RECORDS[0]['path']}"
    assert lines[4].split() == ["short", "-", "failed"]
    assert lines[5].startswith("    why: its images are not here,")
    wide = lay_out(COLUMNS, RECORDS, 400)
    assert len(wide) == 2 + len(RECORDS)


def test_the_one_sentence_breaks_in_its_column_where_there_is_room():
    columns = (Column("", "level"), Column("what", "what"), Column("found", "found", is_prose=True))
    records = [
        {"level": "ok", "what": "Python", "found": "3.11"},
        {"level": "note", "what": "拉面", "found": "a b " * 15},
    ]
    lines = lay_out(columns, records, 60)
    assert lines[2] == "ok    Python  3.11"
    assert lines[3].startswith("note  拉面    a b")
    assert lines[4:] == [" " * 14 + "b a b a b a b"]
    assert cell_len(lines[3]) == 59
    assert lay_out(columns, records, 40)[3] == "    found: 3.11", "no room"


def test_a_value_that_a_row_is_read_for_stays_in_it():
    names = ("run", "recipe", "state", "test")
    columns = tuple(Column(name, name, is_first=name == "test") for name in names)
    records = [{"run": "12345678", "recipe": "r" * 20, "state": "interrupted", "test": 0.5}]
    lines = lay_out(columns, records, 40)
    assert lines[0].split() == ["run", "recipe", "test"]
    assert lines[3].strip() == "state: interrupted"


def test_wide_characters_keep_columns_in_line():
    lines = lay_out((Column("class", "a"), Column("n", "b")), [{"a": "拉面", "b": 1}, {"a": "abcd", "b": 2}], 80)
    assert lines[2:] == ["拉面   1", "abcd   2"]


def test_wide_characters_below_a_row_are_wrapped_by_their_cells():
    columns = (Column("class", "a"), Column("why", "why", is_prose=True))
    lines = lay_out(columns, [{"a": "ramen", "why": "拉面 " * 20}], 40)
    assert [cell_len(line) for line in lines[3:]] == [38, 38, 38]
    assert " ".join(lines[3:]).split() == ["why:", *["拉面"] * 20]


@pytest.mark.parametrize("is_prose", [False, True])
def test_a_value_that_alone_stands_below_its_row_says_what_it_is(is_prose):
    columns = (Column("run", "run"), Column("needed by", "by", is_prose=is_prose), Column("", "why", is_prose=True))
    records = [{"run": "12345678", "by": "version 1 of shapes"}]
    assert lay_out(columns, records, 24)[2:] == ["12345678", "    needed by: version 1", "    of shapes"]
    assert lay_out(columns, [{"run": "12345678", "why": "it is needed by me"}], 24)[3:] == ["    it is needed by me"]


def test_a_first_value_that_is_too_wide_leaves_the_others_their_table():
    records = [{"recipe": LONG, "state": "done"}, {"recipe": "short", "state": "failed"}]
    lines = lay_out((COLUMNS[0], COLUMNS[2]), records, 20)
    assert lines == ["recipe  state", "─" * 14, LONG, "        done", "short   failed"]
    assert lay_out(COLUMNS[:1], records, 5)[1:3] == ["─" * 5, LONG]


def test_a_terminal_narrower_than_a_heading_is_no_traceback():
    assert lay_out(COLUMNS[:1], [{}], 1)
    assert LONG in lay_out(COLUMNS[:1], [{COLUMNS[0].key: LONG}], 1)


def test_a_pipe_gets_tabs_and_what_is_not_printable_is_shown(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_listing(COLUMNS, [RECORDS[1] | {"path": "two\nlines\tand a tab"}])
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split("\t") == [column.name for column in COLUMNS]
    assert line.split("\t")[3] == "two\\nlines\\tand a tab"


def test_columns_make_a_table_of_a_pipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_listing(COLUMNS, RECORDS)
    assert capsys.readouterr().out.splitlines() == lay_out(COLUMNS, RECORDS, 80)


def test_programs_get_every_value(capsys):
    records = [RECORDS[0] | {"is_kept": True, "counts": {"train": 3}}, RECORDS[1] | {"path": "=1+1"}]
    print_listing(COLUMNS, records, "json")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == records
    print_listing(COLUMNS, records, "csv")
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["published"], first["is_kept"], json.loads(first["counts"])) == ("0.9", "true", {"train": 3})
    assert (second["path"], second["published"], second["is_kept"]) == ("'=1+1", "", "")


def test_a_line_that_is_folded_keeps_paths_and_commands_whole():
    path = f"/home/anna/{'image-classifiers-' * 4}cache"
    folded = listing.fold_line(f"data set 'my-pets' is not in {path}; add it with --data my-pets", 40)
    assert f"{path};" in folded.split()
    assert "my-pets" in folded.split()
    assert listing.fold_line("a b", None) == "a b"


def test_names_in_lists_keep_their_characters_in_csv(capsys):
    print_listing((), [{"classes": ["方块", "é"]}], "csv")
    (_, row) = csv.reader(io.StringIO(capsys.readouterr().out))
    assert row == ['["方块", "é"]']


def test_no_records_are_an_empty_file(capsys):
    for form in ("json", "csv"):
        print_listing(COLUMNS, [], form)
    assert capsys.readouterr().out == ""
