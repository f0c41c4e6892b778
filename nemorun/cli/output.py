"""What every listing prints: plain aligned columns, or JSON with stable keys."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from nemorun.errors import NemorunError

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

_BREAKS = re.compile(r"\s*[\t\r\n\v\f]\s*")
_STYLES = {
    "SUCCEEDED": "green",
    "FAILED": "red",
    "CANCELLED": "yellow",
    "RUNNING": "cyan",
    "UNKNOWN": "magenta",
}


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns. On a terminal long cells fold; in a pipe each row is one plain line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    short = all(len(row[0]) * 2 <= console.width for row in rows)  # then names are not folded
    for index, heading in enumerate(headings):
        grid.add_column(heading.upper(), overflow="fold", no_wrap=short and index == 0)
    for row in rows:
        # Text, not str: what users wrote is shown as it is. A tab or a line break would break the column.
        grid.add_row(*(Text(_BREAKS.sub(" ", cell), _STYLES.get(cell, "")) for cell in row))
    if console.is_terminal:
        console.print(grid)
        return
    console.width = max(1, grid.__rich_measure__(console, console.options.update(max_width=10**6)).maximum)
    with console.capture() as captured:
        console.print(grid)
    for line in captured.get().splitlines():
        print(line.rstrip())


def as_json(value: Any) -> None:
    """Print plain data as indented JSON."""
    import json

    print(json.dumps(value, indent=2))


def note(text: str) -> None:
    """A line for the person, on stderr, so that stdout holds the answer only."""
    print(text, file=sys.stderr)


def confirm(question: str, yes: bool) -> None:
    """Ask on the terminal, and end with 2 on "no". Raises NemorunError where there is none and no `--yes`."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise NemorunError(f"{question} There is no terminal to ask on: answer with --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(2)


def when(seconds: float | None) -> str:
    """A point in time (seconds since the epoch) in local time to the second; empty for None."""
    from datetime import datetime

    return "" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float | None) -> str:
    """`4.2s`, `3m05s`, `2h07m`, `3d04h`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 48 else f"{hours // 24}d{hours % 24:02d}h"
