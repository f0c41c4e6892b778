"""Code archives: the same files give the same bytes, and so the same name."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from nemorun.errors import PackagingError

SUFFIX = ".tar.gz"
#: Level 1 makes archives a tenth larger than level 6, in a third of the time.
_COMPRESSION = 1


def outside(root: Path, name: str) -> bool:
    """Is `root/name` a symbolic link that leads out of `root`?"""
    path = root / name
    return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root)


def pack(root: Path, names: Iterable[str], folder: Path, keep: bool = True) -> tuple[Path, str]:
    """Write the files to `folder/<SHA-256>.tar.gz` (once for equal content); returns its path and SHA-256.

    Without `keep` nothing stays: the name is all that is wanted.
    """
    temporary = None
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
        with (
            os.fdopen(descriptor, "w+b") as file,
            gzip.GzipFile("", "wb", _COMPRESSION, fileobj=file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name in names:
                _add(tar, root, name)
        sha256 = _sha256(Path(temporary))
        path = folder / f"{sha256}{SUFFIX}"
        if keep and not path.exists():
            os.replace(temporary, path)  # noqa: PTH105
        return path, sha256
    except OSError as error:
        raise PackagingError(f"the code archive cannot be written to {folder} ({error.strerror})") from None
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def unpack(archive: Path) -> Path:
    """Unpack an archive beside itself, into a folder of its name without `.tar.gz`, unless that is there.

    Safe while others do the same: the folder appears whole.
    """
    folder = archive.with_name(archive.name.removesuffix(SUFFIX))
    if folder.is_dir():
        return folder
    temporary = Path(tempfile.mkdtemp(dir=archive.parent, suffix=".part"))
    try:
        with tarfile.open(archive) as tar:
            # refuses links and names that lead out; Pythons before 3.10.12 and 3.11.4 have no such filter
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
            tar.extractall(temporary)
        temporary.rename(folder)
    except (OSError, tarfile.TarError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.is_dir():  # else another process was faster
            raise PackagingError(f"the code archive {archive} cannot be unpacked: {error}") from None
    return folder


def _add(tar: tarfile.TarFile, root: Path, name: str) -> None:
    path = root / name
    member = tarfile.TarInfo(name)  # owner and time stay 0: they are not code
    try:
        if path.is_symlink():
            member.type = tarfile.SYMTYPE
            link = path.readlink()
            member.linkname = (
                os.path.relpath(os.path.realpath(path), path.parent) if link.is_absolute() else str(link)
            )
            tar.addfile(member)
            return
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe would never end
            return
        content = path.read_bytes()
        member.mode = 0o755 if mode & stat.S_IXUSR else 0o644
    except FileNotFoundError:
        return  # deleted since it was listed
    except OSError as error:
        raise PackagingError(
            f"{path} cannot be frozen ({error.strerror}): make it readable, or name it in .nemorunignore"
        ) from None
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
