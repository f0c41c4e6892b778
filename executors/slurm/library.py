"""nemorun itself as an archive, named by its content: a cluster needs nothing but Python and torch."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from nemorun.errors import SubmitError
from nemorun.workspace import home

#: `python3 FOLDER task.yaml` runs this. A PyYAML that the cluster's Python has comes before ours, which has
#: no C code.
_MAIN = """\
import os
import sys

folder = os.path.dirname(os.path.realpath(__file__))
sys.path[0] = folder
sys.path.append(os.path.join(folder, "fallback"))

from nemorun.worker import main

main()
"""


def library() -> Path:
    """The archive `<SHA-256>.tar.gz` in nemorun's home, built where files have changed. Or SubmitError."""
    try:
        files = dict(sorted(_files()))
        stats = ((name, path.stat()) for name, path in files.items())
        seen = "".join(f"{name} {stat.st_size} {stat.st_mtime_ns}\n" for name, stat in stats)
        folder = home() / "library"
        built = folder / hashlib.sha256((_MAIN + seen).encode()).hexdigest()[:16]
        with_name = built.read_text() if built.exists() else ""
        archive = folder / with_name
        if not with_name or not archive.is_file():
            content = _packed(files)
            folder.mkdir(mode=0o700, exist_ok=True)
            archive = folder / f"{hashlib.sha256(content).hexdigest()}.tar.gz"
            _write(archive, content)
            _write(built, archive.name.encode())
        return archive
    except OSError as error:
        raise SubmitError(
            f"nemorun cannot be packed for the cluster: {error}; nothing was submitted"
        ) from None


def _files() -> Iterator[tuple[str, Path]]:
    """Name in the archive -> file."""
    import yaml

    import nemorun

    for name, package in (("nemorun", nemorun), ("fallback/yaml", yaml)):
        assert package.__file__
        root = Path(package.__file__).parent
        for folder, below, files in os.walk(root, followlinks=True):  # executors/ and recipes/ are links
            below[:] = [one for one in below if one != "__pycache__"]
            for file in files:
                path = Path(folder, file)
                if path.suffix in (".py", ".sh", ".typed"):
                    yield f"{name}/{path.relative_to(root).as_posix()}", path


def _packed(files: dict[str, Path]) -> bytes:
    """The same files give the same bytes."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile("", "wb", fileobj=packed, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, content in (
            ("__main__.py", _MAIN.encode()),
            *((name, path.read_bytes()) for name, path in files.items()),
        ):
            member = tarfile.TarInfo(name)
            member.mode, member.size = 0o644, len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: others may read it meanwhile."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)
