"""The tokenizer that is always there: the bytes of UTF-8, and one token that ends a document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemorun.llm.data.tokenizer import Placed

END = 256
"""The token after each document."""
VOCAB_SIZE = 257
_END_TEXT = "<|end|>"
"""How END is written where special tokens are written out."""


class ByteTokenizer:
    """Tokens 0 to 255 are bytes, 256 ends a document."""

    name = "bytes"
    fingerprint = "bytes-257"
    vocab_size = VOCAB_SIZE
    eos = END
    bos: int | None = None
    chat_template: str | None = None
    takes_any_bytes = True

    @property
    def marks(self) -> dict[str, str]:
        return {"eos_token": _END_TEXT}

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="surrogateescape"))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_marked(self, texts: list[str], *, whole: bool) -> list[Placed]:
        return [_placed(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        pieces, rest = [], bytearray()
        for token in ids:
            if token == END:
                pieces.append(rest.decode("utf-8", errors="replace") + _END_TEXT)
                rest.clear()
            else:
                rest.append(token)
        return "".join(pieces) + rest.decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """There is nothing to save."""


def _placed(text: str) -> Placed:
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    at = 0
    for number, piece in enumerate(text.split(_END_TEXT)):
        if number:
            ids.append(END)
            spans.append((at, at + len(_END_TEXT)))
            at += len(_END_TEXT)
        for place, character in enumerate(piece, start=at):
            encoded = character.encode("utf-8", errors="surrogateescape")
            ids += encoded
            spans += [(place, place + 1)] * len(encoded)
        at += len(piece)
    return Placed(ids, spans)
