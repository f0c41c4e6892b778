"""Listings are readable in a pipe, on a narrow terminal, and without colour."""

from __future__ import annotations

import json
import re
import sys

import pytest

from nemorun.cli.output import as_json, duration, table

from .conftest import terminal

ROWS = [("a [red]b", "FAILED", "x" * 60), ("tab\there", "SUCCEEDED", "ünï 漢字\nnext line")]


def test_a_pipe_gets_one_plain_line_a_row(capfd):
    table(("name", "state", "text"), ROWS)
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 3
    assert not any("\t" in line or "\x1b" in line or line != line.rstrip() for line in lines)
    assert lines[1].startswith("a [red]b") and "x" * 60 in lines[1]
    assert lines[0].index("STATE") == lines[1].index("FAILED") == lines[2].index("SUCCEEDED")


def test_an_empty_table_has_its_headings(capfd):
    table(("name", "state"), [])
    assert capfd.readouterr().out.split() == ["NAME", "STATE"]


def on_terminal(columns: int, **env: str) -> str:
    """What `table` prints of ROWS on a terminal of that width."""
    program = f"from nemorun.cli.output import table; table(('name', 'state', 'text'), {ROWS!r})"
    settings = {"COLUMNS": str(columns), "TERM": "xterm-256color", **env}
    return terminal([sys.executable, "-c", program], env=settings)[1]


def test_a_narrow_terminal_folds_and_loses_nothing():
    seen = re.sub(r"\x1b\[\d*m", "", on_terminal(40, NO_COLOR="1"))
    assert all(len(line) <= 40 for line in seen.splitlines())
    assert re.sub("[^x]", "", seen.partition("FAILED")[2]) == "x" * 61


def test_names_are_not_folded_where_they_fit():
    rows = [("a_name_that_is_long", "words " * 9, "more words " * 9)]
    program = f"from nemorun.cli.output import table; table(('name', 'one', 'two'), {rows!r})"
    seen = terminal([sys.executable, "-c", program], env={"COLUMNS": "60", "TERM": "dumb"})[1]
    assert "a_name_that_is_long  words" in seen


@pytest.mark.parametrize(
    ("env", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_follows_the_terminal(env, colour):
    assert ("\x1b[3" in on_terminal(80, **env)) is colour


def test_json_is_ascii_so_that_any_program_reads_it(capfd):
    as_json({"name": "漢"})
    text = capfd.readouterr().out
    assert text.isascii() and json.loads(text) == {"name": "漢"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0, "0.0s"),
        (4.21, "4.2s"),
        (59.99, "60.0s"),
        (185, "3m05s"),
        (7620, "2h07m"),
        (273600, "3d04h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
