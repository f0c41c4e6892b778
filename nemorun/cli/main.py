"""The console entry, and the one place where an error becomes a message on stderr and an exit code."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import typer

from nemorun.cli.app import command
from nemorun.errors import NemorunError, did_you_mean

if TYPE_CHECKING:
    from typer import TyperException

MISUSE = 2
DEFECT = 70
"""EX_SOFTWARE of sysexits.h: nemorun itself is broken, and nothing is said about the task."""
INTERRUPTED = 130
BROKEN_PIPE = 141
"""What a shell reports of a program that SIGPIPE ended, as in `nemorun list | head -1`."""


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(argv: Sequence[str]) -> int:
    """Run one command line; returns its exit code. Errors are printed to stderr, never raised."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    argv, debug = _take_debug(list(argv))
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except NemorunError as error:
        _say(str(error), debug)
        return error.exit_code
    except typer.TyperException as error:
        _say(_usage(error), debug)
        return MISUSE
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted", debug)
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the last stop: a defect is reported, never swallowed
        _say(_defect(error), debug)
        return DEFECT


def _dispatch(argv: list[str]) -> int:
    group = command()
    if "_NEMORUN_COMPLETE" in os.environ:  # the shell asks what could be typed next
        group.main(argv, prog_name="nemorun")
    try:
        # Not `group.main`, which would keep errors to itself and end with 1 on a closed pipe.
        with group.make_context("nemorun", argv) as context:
            code = group.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return code if isinstance(code, int) else 0


def _take_debug(argv: list[str]) -> tuple[list[str], bool]:
    """`--debug` may stand anywhere before `--`, so that it can be added to the end of a line that failed."""
    end = argv.index("--") if "--" in argv else len(argv)
    if "--debug" not in argv[:end]:
        return argv, False
    return [word for word in argv[:end] if word != "--debug"] + argv[end:], True


def _say(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"nemorun: {message}", file=sys.stderr)


def _usage(error: TyperException) -> str:
    """A mistake that the parser found, with the nearest option and where to read on."""
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    option = getattr(error, "option_name", None)
    if context is None:
        return f"{message}; `nemorun COMMAND --help` lists what there is"
    known = [name for parameter in context.command.get_params(context) for name in parameter.opts]
    if option is not None and option not in known:
        message = f"no such option '{option}'{did_you_mean(option, known)}"
    separator = " " if message.endswith("?") else "; "
    return f"{message}{separator}`{context.command_path} --help` lists what there is"


def _defect(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return (
        f"internal error: {type(error).__name__}: {error}{where}. This is a defect of nemorun, not of yours: "
        "run the command again with --debug and report what it prints"
    )
