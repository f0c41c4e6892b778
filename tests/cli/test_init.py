"""`nemorun init` writes a workspace that runs as it stands, and overwrites nothing."""

from __future__ import annotations


def test_the_example_runs_as_it_stands(process, tmp_path):
    made = process("init", "new one", cwd=tmp_path)
    assert made.code == 0 and "cd 'new one' && nemorun run example" in made.out
    done = process("run", "example", "steps=3", cwd=tmp_path / "new one")
    assert done.code == 0, done.err
    assert "step 3: at" in done.out and "step 4" not in done.out
    two = process("run", "example", "-e", "two_ranks", "walk.steps=1", "--dry-run", cwd=tmp_path / "new one")
    assert two.code == 0, two.err


def test_what_is_there_is_kept(cli, tmp_path):
    (tmp_path / "nemorun.yaml").write_text("# mine\n")
    done = cli("init", str(tmp_path))
    assert done.code == 0 and "kept" in done.out
    assert (tmp_path / "nemorun.yaml").read_text() == "# mine\n"
    assert (tmp_path / "recipes/example.py").is_file()


def test_a_folder_that_is_none_is_refused(cli, tmp_path):
    (tmp_path / "file").write_text("")
    done = cli("init", str(tmp_path / "file"))
    assert done.code == 2 and str(tmp_path / "file") in done.err
