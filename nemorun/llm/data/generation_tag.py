"""`{% generation %}…{% endgeneration %}`: how a template says which of its text the assistant writes."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

from jinja2 import nodes
from jinja2.ext import Extension


class Marks(NamedTuple):
    """Texts that stand around each answer while a template is rendered; nobody can guess them."""

    start: str
    end: str


class GenerationTag(Extension):
    """Puts the context's `generation_marks` around what stands in the tag."""

    tags = {"generation"}  # noqa: RUF012 - Jinja wants it like this

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = nodes.Name("generation_marks", "load")
        call = self.call_method("_around", [marks], lineno=line)
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    @staticmethod
    def _around(marks: Marks, caller: Any) -> str:
        return f"{marks.start}{caller()}{marks.end}"


def new_marks() -> Marks:
    key = secrets.token_hex(8)
    return Marks(f"\0{key}<", f"\0{key}>")


def answers_of(text: str, marks: Marks) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and what they stood around."""
    before, *parts = text.split(marks.start)
    answers = []
    for part in parts:
        answer, _, rest = part.partition(marks.end)
        answers.append((len(before), len(before) + len(answer)))
        before += answer + rest
    return before, answers
