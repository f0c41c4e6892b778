"""What a submission sends: one tar.gz of scripts, tasks, secrets and the archives that are not there yet."""

from __future__ import annotations

import gzip
import io
import shlex
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nemorun.errors import SubmitError
from nemorun.executors.slurm.cluster import script
from nemorun.executors.slurm.paths import (
    CODE,
    LIBRARY,
    experiment_id,
    remote_experiment_dir,
    remote_results_dir,
    remote_run_dir,
)
from nemorun.executors.slurm.units import SlurmRendered, Unit
from nemorun.job import JobSpec
from nemorun.packaging import SUFFIX


@dataclass(frozen=True)
class Payload:
    """A submission, ready to be packed for `submit.sh`."""

    rendered: SlurmRendered
    secrets: Mapping[str, str]
    library: Path
    besides: Mapping[str, str] = field(default_factory=dict)
    """Further files for the experiment's folder: name -> text."""

    @property
    def id(self) -> str:
        return experiment_id(self.rendered.jobs[0].token)

    @property
    def folder(self) -> str:
        """The experiment's, under `job_dir`."""
        job = self.rendered.jobs[0]
        return remote_experiment_dir(job.token, job.run_dir)

    @property
    def archives(self) -> dict[str, Path]:
        """What the experiment needs: path under `job_dir` -> archive here."""
        codes = sorted({Path(job.code) for job in self.rendered.jobs if job.code})
        name = self.library.name.removesuffix(SUFFIX)
        return {f"{LIBRARY}/{name}": self.library, **{f"{CODE}/{code.name}": code for code in codes}}

    def packed(self, have: frozenset[str], max_array_size: int) -> bytes:
        """All of it but the archives that the cluster has."""
        content = io.BytesIO()
        try:
            with (
                gzip.GzipFile("", "wb", 1, content) as compressed,
                tarfile.open(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT) as tar,
            ):
                self._fill(_Files(tar), have, max_array_size)
        except OSError as error:
            raise SubmitError(
                f"{error.filename} cannot be read ({error.strerror}); nothing was submitted"
            ) from None
        return content.getvalue()

    def _fill(self, files: _Files, have: frozenset[str], max_array_size: int) -> None:
        for path, archive in self.archives.items():
            if path not in have:
                files.add(f"archives/{PurePosixPath(path).name}", archive.read_bytes())
        for name, text in {"job.sh": script("job.sh"), **self.besides}.items():
            files.add(f"place/{name}", text)
        library = next(iter(self.archives))
        files.link("place/nemorun", "../" * (self.folder.count("/") + 1) + library)
        files.folder("place/logs")
        files.folder("tasks")
        units = self.rendered.units
        for unit in units:
            files.add(f"place/{unit.name}.sbatch", unit.script)
            if _is_array(unit):
                files.add(f"place/{unit.name}.tasks", "".join(f"{name}\n" for name in unit.tasks))
            for index, name in enumerate(unit.tasks):
                number = str(index % max_array_size) if _is_array(unit) else "-"
                files.add(f"tasks/{name}/unit", f"{unit.name} {number}\n")
        for job in self.rendered.jobs:
            _add_task(files, job, self.secrets)
        files.add("plan", "".join(f"{line}\n" for line in plan(units, max_array_size)))


def plan(units: Sequence[Unit], max_array_size: int) -> list[str]:
    """A line for each call of sbatch; see `submit.sh`."""
    arrays = {unit.name: unit for unit in units if _is_array(unit)}
    lines = []
    for unit in units:
        after = ",".join(_after(unit, list(arrays.values()), max_array_size)) or "-"
        besides = unit.dependency or "-"
        if unit.name not in arrays:
            lines.append(f"{unit.name} 0 - - {after} - {besides}")
            continue
        size = len(unit.tasks)
        for start in range(0, size, max_array_size):
            count = min(max_array_size, size - start)
            limit = f"%{unit.limit}" if unit.limit else ""
            array = f"0-{count - 1}{limit}" if size > max_array_size else "-"
            # a limit counts for one job, so the parts of an array that has one go one after the other
            follows = "+" if start and unit.limit else "-"
            lines.append(f"{unit.name} {start} {count} {array} {after} {follows} {besides}")
    return lines


def _is_array(unit: Unit) -> bool:
    return unit.tasks != (unit.name,)


def _after(unit: Unit, arrays: Sequence[Unit], max_array_size: int) -> list[str]:
    """Its dependencies; where they are all of an array, then its jobs rather than each element."""
    after = dict.fromkeys(unit.after)
    words = []
    for array in arrays:
        if all(name in after for name in array.tasks):
            words += [f"+{name}" for name in array.tasks[::max_array_size]]
            after = {name: None for name in after if name not in array.tasks}
    return [*after, *words]


def _add_task(files: _Files, job: JobSpec, secrets: Mapping[str, str]) -> None:
    run_dir, folder = Path(job.run_dir), f"tasks/{job.name}"
    files.folder(f"{folder}/logs")
    if job.task:
        for path in (Path(job.task), *sorted(run_dir.glob("*.py"))):
            files.add(f"{folder}/{path.name}", path.read_bytes())
    if (earlier := run_dir / "results").is_symlink():
        depth = remote_run_dir(job.token, job.run_dir).count("/")
        files.link(f"{folder}/results", "../" * (depth + 1) + remote_results_dir(earlier.readlink()))
    if job.secrets:
        lines = (f"export {name}={shlex.quote(secrets[name])}\n" for name in job.secrets)
        files.add(f"{folder}/secrets", "".join(lines))


class _Files:
    """Members of an archive, for their owner only."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def add(self, name: str, content: bytes | str) -> None:
        data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
        self._member(name, lambda member: None, data)

    def folder(self, name: str) -> None:
        def change(member: tarfile.TarInfo) -> None:
            member.type, member.mode = tarfile.DIRTYPE, 0o700

        self._member(name, change)

    def link(self, name: str, target: str) -> None:
        def change(member: tarfile.TarInfo) -> None:
            member.type, member.linkname = tarfile.SYMTYPE, target

        self._member(name, change)

    def _member(self, name: str, change: Callable[[tarfile.TarInfo], None], data: bytes = b"") -> None:
        member = tarfile.TarInfo(name)
        member.mode, member.size = 0o600, len(data)
        change(member)
        self._tar.addfile(member, io.BytesIO(data))
