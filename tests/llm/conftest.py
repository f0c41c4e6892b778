"""The tokenizer of the tests, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.llm.samples import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "chatml")
