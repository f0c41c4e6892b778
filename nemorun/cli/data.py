"""`nemorun data`: text made into tokens for training, and a look at them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemorun.cli.app import new_app
from nemorun.cli.output import Json, as_json, duration, note, table
from nemorun.errors import NemorunError

if TYPE_CHECKING:
    from nemorun.llm.data.tokenization import Progress

app = new_app()

_INTERVAL = 10.0
"""Seconds between two lines of progress where there is no terminal."""


@app.callback()
def data() -> None:
    """Make text into tokens, and look at them."""


@app.command()
def tokenize(
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE…", help=".txt, .jsonl or .jsonl.gz files, or folders.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to make.")],
    tokenizer: Annotated[
        str,
        typer.Option(
            metavar="DIR|ID|bytes",
            help="A folder with tokenizer.json, the id of a model on the Hugging Face hub, or bytes.",
        ),
    ] = "bytes",
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes. Default: one for each core.")
    ] = None,
    text_key: Annotated[
        str, typer.Option(metavar="FIELD", help="The field of a line that is its text.")
    ] = "text",
    bos: Annotated[
        bool, typer.Option("--bos", help="Start each document with the first token, too.")
    ] = False,
    skip_bad: Annotated[
        int, typer.Option(min=0, metavar="N", help="Leave out up to N bad lines; they are named.")
    ] = 0,
) -> int:
    """Make a folder of tokens to pre-train on.

    A file is a document; in .jsonl files each line is one. When it is interrupted, the same command goes on.
    """
    with _training_wing():
        from nemorun.llm.data.encoders import DocumentEncoder
        from nemorun.llm.data.tokenization import count_bad
        from nemorun.llm.data.tokenization import tokenize as run
        from nemorun.llm.data.tokenizer import load_tokenizer

        encoder = DocumentEncoder(load_tokenizer(tokenizer), text_key, bos)
        if bos and encoder.tokenizer.bos is None:
            raise NemorunError(f"--bos: the tokenizer {tokenizer} names no first token; leave it out")
        with _progress() as report:
            found = run(
                sources, output, encoder, workers=workers or _cores(), skip_bad=skip_bad, report=report
            )
    for line in found.bad[:20]:
        note(f"left out: {line}")
    if found.bad_count:
        note(f"{count_bad(found.bad_count)} left out in all")
    made = "was made before" if found.was_there else f"{found.documents:,} documents, {found.tokens:,} tokens"
    note(f"{found.folder}: {made}")
    return 0


@app.command()
def show(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that `nemorun data tokenize` made.")
    ],
    document: Annotated[int, typer.Option(min=0, metavar="N", help="The document to show, from 0.")] = 0,
    length: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of it to show.")] = 100,
    json: Json = False,
) -> None:
    """Show what a folder of tokens holds, and the start of a document as text."""
    with _training_wing():
        from nemorun.llm.data.token_files import open_tokens

        files = open_tokens(folder)
        if document >= files.count:
            raise NemorunError(f"--document {document}: {folder} has documents 0 to {files.count - 1}")
        start, stop = (int(place) for place in files.documents[document : document + 2])
        text = files.load_tokenizer().decode(files.tokens[start : min(stop, start + length)].tolist())
    about = files.about
    if json:
        as_json({**about, "sample": text})
        return
    rows = {
        "tokens": f"{about['tokens']:,}",
        "documents": f"{about['documents']:,}",
        "tokenizer": f"{files.tokenizer['name']} ({files.tokenizer['vocab_size']:,} tokens)",
        "fingerprint": files.tokenizer["fingerprint"],
        "sources": ", ".join(about["sources"]),
        "bad lines": f"{about['bad_lines']:,}",
        "sha256": about["sha256"],
        f"document {document}": f"{stop - start:,} tokens",
    }
    table(("what", ""), list(rows.items()))
    print(f"\n{text}")


@contextmanager
def _training_wing() -> Iterator[None]:
    """What data needs is installed with the training core. Raises NemorunError where it is not."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("nemorun"):
            raise
        raise NemorunError(
            f"nemorun data needs {error.name}, which is not installed: pip install 'nemorun[train]'"
        ) from None


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line now and then."""
    start = last = time.monotonic()
    said_kept = False

    def kept(progress: Progress) -> None:
        nonlocal said_kept
        if progress.kept and not said_kept:
            note(f"goes on: {progress.read:,} of {progress.total:,} bytes are done already")
        said_kept = True

    def lines(progress: Progress) -> None:
        nonlocal last
        kept(progress)
        if (now := time.monotonic()) - last >= _INTERVAL:
            last = now
            share = progress.read / max(progress.total, 1)
            note(f"{share:.0%}: {progress.tokens:,} tokens, {duration(now - start)}")

    if not sys.stderr.isatty():
        yield lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns: list[Any] = [
        BarColumn(),
        TextColumn("{task.percentage:.0f}% {task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, tokens=0)

        def drawn(progress: Any) -> None:
            kept(progress)
            bar.update(task, total=progress.total, completed=progress.read, tokens=progress.tokens)

        yield drawn


def _cores() -> int:
    """Cores that this process may use; not all systems can say that."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
