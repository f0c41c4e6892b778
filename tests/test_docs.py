"""The documentation is run: every block of every page, in order, in one fresh workspace folder a page.

- `bash` runs, and must end with 0, or with N where its last line is `# exits with N`.
- `python` runs as a script in the folder; `yaml` is parsed. With `# file: NAME` as the first line they are
  written to that file instead.
- `text` is output or a sketch, and is not run.
- A `bash` block with the repository's own scripts, or with `# not run here: REASON` first, is only parsed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"bash", "python", "yaml", "text"}
TIME_LIMIT = 600  # seconds a block

_FILE = re.compile(r"# file: (\S+)\n")
_EXIT = re.compile(r"\n# exits with (\d+)\s*\Z")
_NOT_RUN = re.compile(r"# not run here: \S+")
_SCRIPT = re.compile(r"^(?:\.ci|scripts)/[\w/-]+", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line} ({self.language})"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, those inside lists too."""
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence" and token.map:
            yield Block(page, token.map[0] + 1, token.info.strip(), token.content)


def check(block: Block, workspace: Path) -> None:
    """Do with a block what its language says; raises AssertionError with its output where that goes wrong."""
    assert block.language in LANGUAGES, f"{block}: a block is one of {sorted(LANGUAGES)}"
    named = _FILE.match(block.text)
    if named and block.language in ("python", "yaml"):
        target = workspace / named[1]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text)
    if block.language == "yaml":
        list(yaml.parse(block.text, Loader=yaml.SafeLoader))  # the syntax: tags are nemorun's own
    elif block.language == "python" and not named:
        script = workspace / f"{block.page.stem.lower()}_{block.line}.py"
        script.write_text(block.text)
        _run(block, [sys.executable, script.name], workspace, expected=0)
    elif block.language == "bash" and (_NOT_RUN.match(block.text) or _SCRIPT.search(block.text)):
        for name in _SCRIPT.findall(block.text):
            assert os.access(ROOT / name, os.X_OK), f"{block}: no executable file {name}"
        _run(block, ["bash", "-n", "-c", block.text], workspace, expected=0)
    elif block.language == "bash":
        code = _EXIT.search(block.text)
        shell = ["bash", "-euo", "pipefail", "-c", block.text]
        _run(block, shell, workspace, expected=int(code[1]) if code else 0)


def _run(block: Block, argv: list[str], workspace: Path, expected: int) -> None:
    env = {**os.environ, "HOME": str(workspace.parent), "GIT_CONFIG_GLOBAL": os.devnull}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    for role in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{role}_NAME": "Reader", f"GIT_{role}_EMAIL": "reader@example.org"}
    log = workspace.parent / "output"
    with log.open("wb") as output:  # a file: what stays behind in the background keeps no pipe open
        process = subprocess.Popen(
            argv,
            cwd=workspace,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | str = process.wait(TIME_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = f"nothing within {TIME_LIMIT} s"
    printed = log.read_text(errors="replace")[-4000:]
    assert code == expected, f"{block} ended with {code}:\n{block.text}\n--- printed:\n{printed}"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs(page: Path, workspace: Path) -> None:
    for block in blocks(page):
        check(block, workspace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    tokens = [child for token in MarkdownIt().parse(page.read_text()) for child in token.children or ()]
    targets = [str(token.attrs["href"]) for token in tokens if token.type == "link_open"]
    targets += [str(token.attrs["src"]) for token in tokens if token.type == "image"]
    local = [target.partition("#")[0] for target in targets if "://" not in target]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {missing}"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if f"({page.name})" not in index] == ["README.md"]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("bash", "false\n"),
        ("bash", "false | true\ntrue\n"),
        ("bash", "true\n# exits with 2\n"),
        ("bash", "scripts/no-such-script\n"),
        ("bash", "# not run here: no Slurm\nif then\n"),
        ("python", "raise ValueError\n"),
        ("yaml", "a: [1\n"),
        ("console", "$ true\n"),
        ("", "true\n"),
    ],
)
def test_a_wrong_block_is_found(language: str, text: str, workspace: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    fence = f"```{language}\n{text}```\n"
    page.write_text("1. A list\n\n" + textwrap.indent(fence, "   "))
    (block,) = blocks(page)
    assert block.text == text
    with pytest.raises(AssertionError) if language != "yaml" else pytest.raises(yaml.YAMLError):
        check(block, workspace)


def test_blocks_share_a_folder(workspace: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```yaml\n# file: conf/a.yaml\nx: !tuple [1, 2]\n```\n\n```python\n# file: b.py\nX = 1\n```\n\n"
        "```python\nimport b\n\nopen('c', 'w').write(open('conf/a.yaml').read() * b.X)\n```\n\n"
        "```bash\ngrep -q tuple c\n```\n\n```bash\nnemorun --no-such-option\n# exits with 2\n```\n"
    )
    for block in blocks(page):
        check(block, workspace)
    assert (workspace / "c").exists()
