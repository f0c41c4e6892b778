"""Token files of sources that are given raw: made once, found by every later run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nemorun.llm.data.encoders import Encoder
from nemorun.llm.data.files import BadLine, identity, pieces
from nemorun.llm.data.shards import write_shard
from nemorun.llm.data.token_files import FORMAT, TokenFiles, open_tokens
from nemorun.llm.data.tokenization import check_bad, count_bad, publish
from nemorun.training.errors import TrainingError

_UNLIMITED = sys.maxsize


def cached(
    files: Sequence[Path], encoder: Encoder, cache_dir: str | Path | None, skip_bad: int, name: str
) -> TokenFiles:
    """The tokens of these files, made if they are not there. `name` is what the user calls the source.

    The folder's name tells the files that it was made of, by path, size and time; so changed files make a
    new one. Any number of processes may call this at once: each writes its own, and the first to finish
    names it. Raises TrainingError, also where more than `skip_bad` lines are bad.
    """
    description = json.dumps([FORMAT, encoder.about(), identity(files)])
    final = _parent(cache_dir) / hashlib.sha256(description.encode()).hexdigest()[:20]
    if not final.is_dir():
        try:
            _make(final, files, encoder, name)
        except OSError as error:
            # Another process was first, unless this is a real failure.
            if not final.is_dir():
                raise TrainingError(
                    f"the tokens of {name} could not be cached: {error}. "
                    "data.cache_dir or NEMORUN_CACHE_DIR can name another folder"
                ) from error
    found = open_tokens(final)
    bad = [BadLine(*line) for line in found.about["bad"]]
    check_bad(found.about["bad_lines"], bad, skip_bad, found.count)
    return found


def bad_lines(files: TokenFiles) -> str:
    """What is to be said of lines that were left out; empty where there are none."""
    count, named = files.about["bad_lines"], [str(BadLine(*line)) for line in files.about["bad"][:5]]
    if not count:
        return ""
    more = f" and {count - 5:,} more" if count > 5 else ""
    return f"warning: {count_bad(count)} left out: {'; '.join(named)}{more}"


def _make(final: Path, files: Sequence[Path], encoder: Encoder, name: str) -> None:
    final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    work = Path(tempfile.mkdtemp(prefix=f"{final.name}.", suffix=".tmp", dir=final.parent))
    try:
        (part,) = pieces(files, _UNLIMITED)
        # Bad lines are no matter here: the cache says how many there are, and each run what it allows.
        shard = write_shard(work, 0, part, encoder, _UNLIMITED)
        if not shard.documents:
            check_bad(shard.bad_count, shard.bad, 0, 0)
        about = {**encoder.about(), "sources": [name]}
        publish(work, work, [shard], about, final, _UNLIMITED)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _parent(chosen: str | Path | None) -> Path:
    chosen = chosen or os.environ.get("NEMORUN_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nemorun" / "tokens"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nemorun" / "tokens"
