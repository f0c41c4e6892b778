"""An example in tokens, and which of them are to be learned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nemorun.llm.data.chat import ChatTemplate
from nemorun.llm.data.encoders import Encoded, tokenizer_of
from nemorun.llm.data.examples import example_of
from nemorun.llm.data.files import Record, read_json
from nemorun.llm.data.tokenizer import Placed, Tokenizer


class _Item(NamedTuple):
    text: str
    answers: list[tuple[int, int]] | None
    """None: all of it is learned."""
    whole: bool
    """The tokenizer is to put around it what it puts around a text, and the end token follows."""


@dataclass(frozen=True)
class ExampleEncoder:
    """Each line is an example."""

    tokenizer: Tokenizer
    template: ChatTemplate
    train_on: str = "answers"
    """Or all."""

    def about(self) -> dict[str, Any]:
        template = hashlib.sha256(self.template.source.encode()).hexdigest()[:16]
        return {
            "kind": "examples",
            "chat_template": template,
            "train_on": self.train_on,
            **tokenizer_of(self.tokenizer),
        }

    def read(self, record: Record) -> _Item:
        if not record.is_json:
            raise ValueError("examples are lines of JSON, in files that end in .jsonl or .jsonl.gz")
        found = example_of(read_json(record.raw))
        if isinstance(found, str):
            if not found:
                raise ValueError("'text' is empty")
            return _Item(found, None, whole=True)
        if self.train_on == "all":
            return _Item(self.template.render(found.messages, found.tools).text, None, self.template.plain)
        if not any(message["role"] == "assistant" for message in found.messages):
            raise ValueError("no turn has the role 'assistant', so there is nothing to learn")
        text, answers = self.template.render(found.messages, found.tools)
        return _Item(text, answers, self.template.plain)

    def encode(self, items: list[_Item]) -> list[Encoded | ValueError]:
        found: list[Encoded | ValueError] = [ValueError()] * len(items)
        for whole in (True, False):
            places = [place for place, item in enumerate(items) if item.whole == whole]
            placed = self.tokenizer.encode_marked([items[place].text for place in places], whole=whole)
            for place, one in zip(places, placed, strict=True):
                found[place] = self._encoded(items[place], one)
        return found

    def _encoded(self, item: _Item, placed: Placed) -> Encoded | ValueError:
        if item.answers is not None:
            ids, learned = placed.ids, _inside(placed.spans, item.answers)
        else:
            ids = placed.ids
            if item.whole and ids[-1:] != [self.tokenizer.eos]:
                ids = [*ids, self.tokenizer.eos]
            learned = [True] * len(ids)
        if not any(learned[1:]):  # the first is what the others follow
            return ValueError("there is nothing to learn in it: its answers are empty")
        return Encoded(ids, learned)


def _inside(spans: Sequence[tuple[int, int]], answers: Sequence[tuple[int, int]]) -> list[bool]:
    """Which tokens have characters of an answer."""
    learned = []
    left = iter(answers)
    start, end = next(left, (0, 0))
    for first, last in spans:
        while first >= end and (following := next(left, None)):
            start, end = following
        learned.append(max(first, start) < min(last, end))
    return learned
