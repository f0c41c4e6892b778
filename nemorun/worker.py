"""The door between the launcher and the training: the process that starts as one rank of a job.

    python -m nemorun.worker TASK.yaml
    python -m nemorun.worker --command -- program argument …

Whatever else it needs to know stands in its environment (NEMORUN_*), where any executor can put it:

    NEMORUN_RESUMABLE   the task saves its state on SIGTERM or SIGUSR2, and ends with EXIT_RESUME
    NEMORUN_RANK_LOGS   the folder in which this rank writes its own log, where nothing else does it
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from nemorun.job import EXIT_RESUME

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
_pid = os.getpid()
_OUR_FOLDER = Path(__file__).parent


def main() -> None:
    if os.environ.get("NEMORUN_RESUMABLE"):
        for number in _STOP_SIGNALS:
            signal.signal(number, _resume_later)
    _write_own_log()
    _watch_lifeline()
    # `-m`, without -P, puts the folder we start in first: that is not what was submitted.
    if sys.orig_argv[1] == "-m" and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    words = sys.argv[1:]
    if words[:2] == ["--command", "--"] and len(words) > 2:
        _run_command(words[2:])
    elif len(words) == 1 and words[0] != "--command":
        _run_task(Path(words[0]))
    else:
        sys.exit("usage: python -m nemorun.worker TASK.yaml | --command -- program argument …")


def _resume_later(number: int, _: object) -> None:
    """Told to stop before the task listens: there is nothing to save, and no import to be waited for."""
    if os.getpid() != _pid:
        os._exit(128 + number)  # a process that the task forked
    _ask_for_resume()
    _pass_on(number, None)  # to a program that is just being started
    os._exit(EXIT_RESUME)


def _ask_for_resume() -> None:
    """Leave word for who starts us: with several ranks, the exit code of one may not get through to it."""
    _write(f"logs/attempt-{os.environ.get('NEMORUN_ATTEMPT', '1')}/resume", "")


def _write_own_log() -> None:
    folder = os.environ.pop("NEMORUN_RANK_LOGS", None)
    if folder is None:
        return
    path = f"{folder}/rank-{os.environ.get('RANK', '0')}.log"
    try:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:  # a full disk: rather write where we can than not at all
        print(f"nemorun: {path} cannot be written: {error.strerror}", file=sys.stderr)
        return
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _watch_lifeline() -> None:
    """End with our whole process group when the supervisor dies: only it holds the pipe's other end."""
    lifeline = os.environ.pop("NEMORUN_LIFELINE", None)
    if lifeline is not None:
        os.set_inheritable(int(lifeline), False)
        threading.Thread(target=_end_with_supervisor, args=(int(lifeline),), daemon=True).start()


def _end_with_supervisor(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def _run_task(path: Path) -> None:
    from nemorun.config import loads

    sys.excepthook = _report
    code = os.environ.get("NEMORUN_CODE")
    task = loads(path.read_text(encoding="utf-8"), base=path.parent, code_root=Path(code) if code else None)
    _seed()
    try:
        value = task()
    except SystemExit as end:
        if end.code == EXIT_RESUME:
            _ask_for_resume()
        raise
    if value is not None and os.environ.get("RANK", "0") == "0":
        with suppress(TypeError, ValueError):  # what is not plain data is not kept
            _write("result.json", json.dumps(value))


def _seed() -> None:
    """Seed what the task has imported by now."""
    if seed := os.environ.get("NEMORUN_SEED"):
        import random

        random.seed(int(seed))
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(int(seed) % 2**32)
        if "torch" in sys.modules:
            sys.modules["torch"].manual_seed(int(seed))


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback from the user's first frame on, or the sentence that an error of ours consists of.

    A note tells the supervisor when and why we failed.
    """
    import time
    import traceback

    from nemorun.errors import NemorunError

    summary = f"{kind.__name__}: {error}".partition("\n")[0].removesuffix(": ")
    attempt, rank = os.environ.get("NEMORUN_ATTEMPT", "1"), os.environ.get("RANK", "0")
    _write(
        f"logs/attempt-{attempt}/rank-{rank}.failure",
        json.dumps({"time": time.time(), "type": kind.__name__, "error": summary}),
    )
    if isinstance(error, NemorunError):
        print(f"nemorun: {error}", file=sys.stderr)
        return
    while trace is not None and _is_ours(Path(trace.tb_frame.f_code.co_filename)):
        trace = trace.tb_next
    traceback.print_exception(kind, error, trace)


def _is_ours(file: Path) -> bool:
    main = getattr(sys.modules["__main__"], "__file__", None) or ""
    started_us = "runpy" in file.name or file.name == "<string>" or file == Path(main)
    return started_us or file == Path(__file__) or _OUR_FOLDER / "config" in file.parents


def _write(name: str, text: str) -> None:
    """Write a file of the run folder whole, for its owner only."""
    run_dir = os.environ.get("NEMORUN_RUN_DIR")
    if run_dir is not None:
        temporary = Path(run_dir) / f"{name}.new"
        with suppress(OSError):  # a full disk must not hide what happened
            temporary.touch(mode=0o600)
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(Path(run_dir) / name)


def _run_command(words: list[str]) -> None:
    """Run a program as our child, and end as it ended."""
    try:
        program = subprocess.Popen([_frozen(word) for word in words])
    except OSError as error:
        print(f"nemorun: {words[0]!r} cannot be started: {error.strerror}", file=sys.stderr)
        sys.exit(127)
    resumable = bool(os.environ.get("NEMORUN_RESUMABLE"))
    for number in _STOP_SIGNALS if resumable else (signal.SIGTERM,):
        signal.signal(number, _pass_on)
    code = program.wait()
    if resumable and -code in _STOP_SIGNALS:
        code = EXIT_RESUME  # it did not listen yet
    if code == EXIT_RESUME:
        _ask_for_resume()
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _pass_on(number: int, _: object) -> None:
    """The signal to all of our group: a shell does not hand it to its children."""
    signal.signal(number, lambda *_: None)  # it comes back to us
    os.killpg(0, number)


def _frozen(word: str) -> str:
    """A script of the submitted code is read from its frozen copy."""
    code, root = os.environ.get("NEMORUN_CODE"), os.environ.get("NEMORUN_CODE_ROOT")
    if code and root and word.endswith((".py", ".sh")):
        path = Path.cwd() / word
        if path.is_relative_to(root) and (copy := code / path.relative_to(root)).is_file():
            return str(copy)
    return word


if __name__ == "__main__":
    main()
