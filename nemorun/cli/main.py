"""The console entry, and the one place where an error becomes a message on stderr and an exit code."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NoReturn

import typer

from nemorun.cli.app import command
from nemorun.errors import NemorunError, did_you_mean

MISUSE = 2
DEFECT = 70
"""EX_SOFTWARE of sysexits.h: nemorun itself is broken, and nothing is said about the task."""
INTERRUPTED = 130
BROKEN_PIPE = 141
"""What a shell reports of a program that SIGPIPE ended, as in `nemorun list | head -1`."""

#: Set by the shell that asks what could be typed next.
_COMPLETING = "_NEMORUN_COMPLETE"
#: The base of every mistake that the parser finds, for which Typer has not always had a name.
_PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[2]


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(argv: Sequence[str]) -> int:
    """Run one command line; returns its exit code. Errors are printed to stderr, never raised."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    argv, debug = _take_debug(list(argv))
    if _COMPLETING in os.environ:  # nothing may be said between the words that the user types
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            _run(argv, debug=False)
        return 0
    return _run(argv, debug)


def _run(argv: list[str], debug: bool) -> int:
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except NemorunError as error:
        _say(str(error), debug)
        return error.exit_code
    except _PARSER_ERROR as error:
        _say(_usage(error), debug)
        return MISUSE
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted", debug)
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except SystemExit as end:
        if not _users_frames(end):
            raise
        return _report(end, debug)  # a recipe's file that exits while it is loaded must not look like success
    except Exception as error:  # noqa: BLE001 - the last stop: what comes here is reported, never swallowed
        return _report(error, debug)


def _dispatch(argv: list[str]) -> int:
    group = command()
    if _COMPLETING in os.environ:  # the shell asks what could be typed next
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


def _usage(error: Any) -> str:
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


def _report(error: BaseException, debug: bool) -> int:
    """Say what nobody expected: something of the user's that raised, or a defect of nemorun."""
    theirs = _users_frames(error)
    last = (theirs or traceback.extract_tb(error.__traceback__))[-1]
    where = f"{type(error).__name__}: {error} (at {last.filename}:{last.lineno} in {last.name})"
    if theirs:
        _say(f"{where}; --debug shows the traceback", debug)
        return MISUSE
    advice = "This is a defect of nemorun: run the command again with --debug and report what that prints"
    _say(f"internal error: {where}. {advice}", debug)
    return DEFECT


def _users_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The part of the traceback that lies in the user's own files."""
    return [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_installed(frame.filename)]


def _is_installed(file: str) -> bool:
    """Whether a file belongs to Python, to an installed package or to nemorun, and not to the user."""
    import nemorun

    if file.startswith("<"):  # frozen into the interpreter
        return True
    package = Path(nemorun.__file__).parent
    # executors/ and recipes/ may be links out of the package
    homes = [Path(os.__file__).parent, package, package / "executors", package / "recipes"]
    path = Path(file).resolve()
    return "site-packages" in path.parts or any(path.is_relative_to(home.resolve()) for home in homes)
