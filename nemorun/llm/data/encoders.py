"""A record as tokens: what encoders are, and the one for documents to pre-train on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from nemorun.llm.data.files import Record, read_json
from nemorun.llm.data.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """A document, or an example, in tokens."""

    ids: list[int]
    learned: list[bool] | None = None
    """Of an example, which of them are to be learned."""


class Encoder(Protocol):
    """Records as tokens: `read` them one by one, so that a bad one is known, and `encode` many at once.

    It is sent to other processes.
    """

    @property
    def tokenizer(self) -> Tokenizer: ...

    def about(self) -> dict[str, Any]:
        """All that the tokens depend on, as JSON; `kind` is documents or examples."""

    def read(self, record: Record) -> Any:
        """What `encode` takes. Raises ValueError that says why the record cannot be used."""

    def encode(self, items: list[Any]) -> list[Encoded | ValueError]:
        """Tokens, or why there are none, of what `read` gave."""


@dataclass(frozen=True)
class DocumentEncoder:
    """Each record is a document; its last token is the end token."""

    tokenizer: Tokenizer
    text_key: str = "text"
    bos: bool = False
    """Start each document with the tokenizer's first token."""

    def about(self) -> dict[str, Any]:
        return {
            "kind": "documents",
            "text_key": self.text_key,
            "bos": self.bos,
            **tokenizer_of(self.tokenizer),
        }

    def read(self, record: Record) -> str:
        if not record.is_json:
            errors = "surrogateescape" if self.tokenizer.takes_any_bytes else "strict"
            try:
                return record.raw.decode("utf-8", errors)
            except UnicodeDecodeError as error:
                raise ValueError(f"no UTF-8 at byte {error.start + 1}") from None
        found = read_json(record.raw)
        if self.text_key not in found:
            has = ", ".join(map(repr, list(found)[:5])) or "none"
            raise ValueError(f"no field {self.text_key!r} with a text; the fields are {has}")
        text = found[self.text_key]
        if not isinstance(text, str):
            raise ValueError(f"{self.text_key!r} is no text but {type(text).__name__}")
        return without_surrogates(text)

    def encode(self, items: list[str]) -> list[Encoded | ValueError]:
        first = [self.tokenizer.bos] if self.bos and self.tokenizer.bos is not None else []
        found = self.tokenizer.encode_batch(items)
        return [Encoded([*first, *ids, self.tokenizer.eos]) for ids in found]


def tokenizer_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What data.json says of the tokenizer. Its name is what a reader looks for it by."""
    return {
        "tokenizer": {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eos": tokenizer.eos,
        }
    }


def without_surrogates(text: str) -> str:
    """JSON can spell half of a character (\\ud83d), which is no text. Raises ValueError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a character (a lone surrogate) at place {error.start + 1}") from None
    return text
