"""The archive holds the code as it is now, and nothing else."""

import os
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemorun.errors import PackagingError
from nemorun.packaging import Frozen, freeze, git, unpack
from nemorun.workspace import find_workspace


def run_git(folder: Path, *args: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def repository(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    run_git(folder, "init", "-q", "-b", "trunk")
    write(folder, files)
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-qm", "x")
    return folder


def frozen(folder: Path, *targets: Path) -> Frozen:
    result = freeze(find_workspace(folder), targets)
    assert result is not None
    return result


def content(archive: Frozen) -> dict[str, str]:
    with tarfile.open(archive.path) as tar:
        return {
            m.name: f"-> {m.linkname}" if m.issym() else tar.extractfile(m).read().decode()  # type: ignore[union-attr] # all are files
            for m in tar.getmembers()
        }


def test_git_files_as_they_are_now(tmp_path: Path) -> None:
    root = repository(
        tmp_path, {".gitignore": "data/\n", "kept.py": "1", "changed.py": "old", "deleted.py": "x"}
    )
    write(root, {"changed.py": "new", "untracked.py": "u", "data/large.bin": "d"})
    (root / "deleted.py").unlink()
    archive = frozen(root)
    assert content(archive) == {
        ".gitignore": "data/\n",
        "kept.py": "1",
        "changed.py": "new",
        "untracked.py": "u",
    }
    (warning,) = archive.warnings
    assert "2 changed (changed.py, deleted.py)" in warning and "1 untracked (untracked.py)" in warning
    assert archive.files == 4 and archive.sha256 in archive.path.name


def test_equal_code_gives_equal_archives(tmp_path: Path) -> None:
    first = repository(tmp_path / "a", {"x.py": "1", "y/z.py": "2"})
    second = repository(tmp_path / "b", {"y/z.py": "2", "x.py": "1"})
    os.utime(second / "x.py", (0, 0))
    assert frozen(first).sha256 == frozen(second).sha256
    write(second, {"x.py": "3"})
    assert frozen(first).sha256 != frozen(second).sha256


def test_many_uncommitted_files_are_counted_not_listed(tmp_path: Path) -> None:
    root = repository(tmp_path, {"a.py": ""})
    write(root, {f"new{i}.py": "" for i in range(9)})
    assert "9 untracked (new0.py, new1.py, new2.py, new3.py, new4.py and 4 more)" in frozen(root).warnings[0]


def test_ignore_rules_of_our_own(tmp_path: Path) -> None:
    root = repository(
        tmp_path, {"a.py": "", "big.bin": "b", "docs/x.md": "", "docs/keep.md": "", "out/y": ""}
    )
    write(
        root,
        {".nemorunignore": "*.bin\ndocs/*\n!docs/keep.md\n", "nemorun.yaml": "code: {exclude: [out/]}\n"},
    )
    assert set(content(frozen(root))) == {"a.py", "docs/keep.md", ".nemorunignore", "nemorun.yaml"}


def test_a_target_is_frozen_even_where_git_ignores_it(tmp_path: Path) -> None:
    root = repository(tmp_path, {".gitignore": "scratch*\n"})
    write(root, {"scratch.py": "s", "scratch2.py": "t"})
    assert "scratch.py" in content(frozen(root, root / "scratch.py"))
    assert "scratch2.py" not in content(frozen(root, root / "scratch.py"))


def test_a_workspace_within_a_repository(tmp_path: Path) -> None:
    root = repository(tmp_path, {"outside.py": "", "part/nemorun.yaml": "", "part/in.py": ""})
    write(root, {"part/new.py": "", "other_new.py": ""})
    archive = frozen(root / "part")
    assert set(content(archive)) == {"nemorun.yaml", "in.py", "new.py"}
    assert archive.git is not None and archive.git.untracked == ("part/new.py",)


def test_submodules_are_part_of_the_code(tmp_path: Path) -> None:
    library = repository(tmp_path / "library", {"lib.py": "l", ".gitignore": "*.o\n"})
    root = repository(tmp_path / "root", {"main.py": ""})
    run_git(root, "submodule", "add", "-q", str(library), "vendor/library")
    write(root, {"vendor/library/new.py": "n", "vendor/library/x.o": ""})
    names = set(content(frozen(root)))
    assert {"main.py", "vendor/library/lib.py", "vendor/library/new.py"} <= names
    assert "vendor/library/x.o" not in names


def test_odd_names_bits_and_links(tmp_path: Path) -> None:
    names = ["two words.py", "new\nline.py", "ünï.py", "-dash.py", "quote'\".py"]
    root = repository(tmp_path / "root", {**dict.fromkeys(names, ""), "tool.sh": "", "sub/real.py": "r"})
    (root / "tool.sh").chmod(0o755)
    (root / "near").symlink_to("sub/real.py")
    (root / "absolute").symlink_to(root / "sub/real.py")
    (root / "folder").symlink_to("sub")
    (root / "away").symlink_to("/etc/hostname")
    archive = frozen(root)
    found = content(archive)
    assert set(names) <= set(found)
    assert (found["near"], found["absolute"], found["folder"]) == (
        "-> sub/real.py",
        "-> sub/real.py",
        "-> sub",
    )
    assert "away" not in found and any("away" in warning for warning in archive.warnings)
    folder = unpack(archive.path)
    assert os.access(folder / "tool.sh", os.X_OK) and not os.access(folder / "two words.py", os.X_OK)
    assert (folder / "absolute").read_text() == "r"


def test_a_workspace_without_git(tmp_path: Path) -> None:
    files = ["a.py", "conf/x.yaml", "nemorun.yaml"]
    rubbish = [
        "__pycache__/a.pyc",
        ".venv/x.py",
        "my env/pyvenv.cfg",
        "my env/lib.py",
        ".hg/x",
        "x.egg-info/y",
    ]
    rubbish += ["runs/one/experiment.yaml", "runs/one/tasks/t/log"]
    root = write(tmp_path, dict.fromkeys([*files, *rubbish], ""))
    assert set(content(frozen(root))) == set(files)


def test_a_mere_folder_gives_only_the_python_beside_the_target(tmp_path: Path) -> None:
    root = write(tmp_path, dict.fromkeys(["job.py", "helper.py", "pkg/__init__.py", "pkg/data.json"], ""))
    write(root, dict.fromkeys(["notes.txt", "videos/film.mkv", "loose/x.py", "pkg/__pycache__/x.pyc"], ""))
    assert set(content(frozen(root, root / "job.py"))) == {
        "job.py",
        "helper.py",
        "pkg/__init__.py",
        "pkg/data.json",
    }
    assert freeze(find_workspace(root)) is None


def test_too_much_is_refused_with_the_largest_files(tmp_path: Path) -> None:
    root = repository(
        tmp_path, {"nemorun.yaml": "code: {max_size: 1MB}\n", "small.py": "x", "weights.bin": "w" * 2_000_000}
    )
    with pytest.raises(
        PackagingError, match=r"2\.0 MB in 3 files.*1\.0 MB.*weights\.bin \(2\.0 MB\).*\.nemorunignore"
    ):
        frozen(root)


def test_uncommitted_code_can_be_refused(tmp_path: Path) -> None:
    root = repository(tmp_path, {"nemorun.yaml": "code: {uncommitted: refuse}\n", "a.py": ""})
    assert frozen(root).warnings == ()
    write(root, {"a.py": "changed"})
    with pytest.raises(PackagingError, match=r"1 changed \(a\.py\).*commit it first"):
        frozen(root)


def test_what_cannot_be_read_does_no_harm(tmp_path: Path) -> None:
    root = write(tmp_path, {"nemorun.yaml": "", "a.py": ""})
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    assert set(content(frozen(root))) == {"nemorun.yaml", "a.py", "loop", "dangling"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, {"nemorun.yaml": "", "a.py": ""})
    (root / "a.py").chmod(0)
    with pytest.raises(PackagingError, match=r"a\.py cannot be frozen"):
        frozen(root)


def test_a_dry_run_keeps_nothing(tmp_path: Path, nemorun_home: Path) -> None:
    root = repository(tmp_path, {"a.py": ""})
    dry = freeze(find_workspace(root), keep=False)
    assert dry is not None and list((nemorun_home / "code").iterdir()) == []
    assert dry.path == frozen(root).path


def test_many_unpack_at_once(tmp_path: Path) -> None:
    archive = frozen(repository(tmp_path, {f"{i}.py": str(i) for i in range(50)}))
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: unpack(archive.path), range(16)))
    assert folders == {archive.path.with_name(archive.sha256)}
    assert len(list(folders.pop().iterdir())) == 50
    assert not list(archive.path.parent.glob("*.part"))


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="this Python's tarfile cannot refuse")
def test_an_archive_that_leads_out_is_refused(tmp_path: Path) -> None:
    evil = tmp_path / "evil.tar.gz"
    with tarfile.open(evil, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../escaped.py"))
    with pytest.raises(PackagingError, match="cannot be unpacked"):
        unpack(evil)
    assert not (tmp_path.parent / "escaped.py").exists() and not (tmp_path / "evil").exists()


def test_what_git_says(tmp_path: Path) -> None:
    assert git.status(tmp_path) is None
    run_git(tmp_path, "init", "-q", "-b", "trunk")
    assert git.status(tmp_path) == git.GitStatus(None, "trunk")
    root = repository(tmp_path, {"a.py": "1\n2\n3\n", "b c.py": ""})
    run_git(root, "mv", "a.py", "renamed to.py")
    write(root, {"b c.py": "changed", "new one.py": ""})
    state = git.status(root)
    assert (
        state is not None and state.commit is not None and len(state.commit) == 40 and state.branch == "trunk"
    )
    assert set(state.dirty) == {"renamed to.py", "b c.py"} and state.untracked == ("new one.py",)
    assert "+changed" in git.diff(root)
    run_git(root, "checkout", "-q", "--detach")
    detached = git.status(root)
    assert detached is not None and detached.branch is None and detached.commit == state.commit


def test_a_broken_repository_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    with pytest.raises(PackagingError, match="git could not read"):
        git.status(tmp_path)


def test_a_hooks_repository_is_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = repository(tmp_path / "ours", {"a.py": ""})
    monkeypatch.setenv("GIT_DIR", str(repository(tmp_path / "hooks", {"b.py": ""}) / ".git"))
    assert git.files(root) == ["a.py"]


def test_a_full_disk_is_an_error(tmp_path: Path, nemorun_home: Path) -> None:
    root = repository(tmp_path, {"a.py": ""})
    nemorun_home.mkdir()
    (nemorun_home / "code").write_text("no folder can be made here")
    with pytest.raises(PackagingError, match="code archive cannot be written to"):
        frozen(root)
