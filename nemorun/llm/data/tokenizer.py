"""Text to tokens and back: what all tokenizers can do, and how one is found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from nemorun.training.errors import TrainingError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Placed(NamedTuple):
    """Tokens, and the characters of the text that each stands for, from the first to before the second."""

    ids: list[int]
    spans: list[tuple[int, int]]


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def name(self) -> str:
        """What `load_tokenizer` was given."""

    @property
    def fingerprint(self) -> str:
        """Equal for tokenizers that give the same tokens."""

    @property
    def vocab_size(self) -> int:
        """Every token is smaller than this."""

    @property
    def eos(self) -> int:
        """The token that ends a document."""

    @property
    def bos(self) -> int | None:
        """The token that starts one, where the model was trained with such a token."""

    @property
    def chat_template(self) -> str | None:
        """How a conversation is written as text, in Jinja."""

    @property
    def marks(self) -> dict[str, str]:
        """Special tokens as text, by the names that chat templates have for them, such as `eos_token`."""

    @property
    def takes_any_bytes(self) -> bool:
        """Whether bytes that are no UTF-8 can be encoded, given as Python's surrogate escapes."""

    def encode(self, text: str) -> list[int]:
        """Plain text: what looks like a special token in it is text as well. Nothing is added."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` for each."""

    def encode_marked(self, texts: list[str], *, whole: bool) -> list[Placed]:
        """Text in which special tokens are written out, as chat templates do.

        With `whole`, each gets what the tokenizer puts around a text by itself, such as a first token.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text; special tokens are written out."""

    def save(self, folder: Path) -> None:
        """Copy the tokenizer's files to `folder`, which `load_tokenizer` then takes. Bytes have none."""


def load_tokenizer(name: str | Path | None) -> Tokenizer:
    """A folder with `tokenizer.json`, or that file; the id of a model on the hub; `bytes`, as None is, too.

    The hub is asked only where `name` is no folder and reads `owner/model`. Raises TrainingError.
    """
    if name is None or str(name) == "bytes":
        from nemorun.llm.data.byte_level import ByteTokenizer

        return ByteTokenizer()
    from nemorun.llm.data.hub_tokenizer import HubTokenizer, download

    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".json":
        path = path.parent
    if path.is_dir():
        return HubTokenizer(path.absolute(), str(name))
    if isinstance(name, str) and _HUB_ID.fullmatch(name):
        return HubTokenizer(download(name), name)
    raise TrainingError(
        f"tokenizer={name} is no folder on this machine ({path.absolute()}): give a folder with "
        "tokenizer.json, the id of a model on the Hugging Face hub, such as owner/model, or bytes"
    )
