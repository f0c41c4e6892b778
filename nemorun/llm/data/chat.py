"""A conversation as text, by a Jinja template, and where in the text the assistant's answers are."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nemorun.llm.data.tokenizer import Tokenizer
from nemorun.training.errors import TrainingError

PLAIN = """\
{%- for message in messages -%}
{{ '### ' + message['role'] | capitalize + ':\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{%- if not loop.last %}{{ '\\n\\n' }}{% endif -%}
{%- else -%}
{{ message['content'] + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Assistant:\\n' }}{%- endif -%}
"""
"""What is taken where the tokenizer has no template:

    ### User:
    What is 2 + 2?

    ### Assistant:
    4<end token>
"""
_MARKED = re.compile(r"{%-?\s*generation\s*-?%}")
_DATE = datetime.date(2024, 7, 26)
"""Today, for templates that ask: the same each day, so that the same examples give the same tokens. It is the
day that Llama's templates take where there is none."""


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    answers: list[tuple[int, int]]
    """Where each answer starts and ends in it, its end mark included."""


class ChatTemplate:
    """A Jinja template with what those of the hub use. It runs in a sandbox: it comes with a model."""

    def __init__(self, source: str, marks: Mapping[str, str], name: str, *, plain: bool = False) -> None:
        self.source = source
        self.marks = dict(marks)
        self.name = name
        self.plain = plain
        """The built-in one, which does not write what the tokenizer puts around a text by itself."""
        self._template  # noqa: B018 - a template that is no Jinja is refused here

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.source, self.marks, self.name, self.plain)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> Rendered:
        """Raises ValueError where the template refuses it, or its answers cannot be told from the rest."""
        if _MARKED.search(self.source):
            text, answers = self._text(messages, tools)
            return Rendered(text, answers)
        text, _ = self._text(messages, tools)
        answers = []
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                answers.append(self._answer(messages, place, tools, text))
        return Rendered(text, answers)

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text after which the assistant's answer comes."""
        return self._text(messages, None, prompt=True)[0]

    def _answer(
        self, messages: Sequence[Mapping[str, Any]], place: int, tools: Any, text: str
    ) -> tuple[int, int]:
        """What the turn adds to the text before it: that is how a model is asked for it, too."""
        until = self._text(messages[: place + 1], tools)[0] if place + 1 < len(messages) else text
        for prompt in (True, False):  # a few templates do not know how to ask
            try:
                before = self._text(messages[:place], tools, prompt=prompt)[0]
            except ValueError:  # some want a user's turn first
                continue
            if until.startswith(before) and text.startswith(until):
                return len(before), len(before) + len(until[len(before) :].rstrip())
        raise ValueError(
            f"the {self.name} writes messages[{place}] otherwise when others follow, so the answer cannot be "
            "told from the rest: mark answers with {% generation %} in it, or set data.train_on=all"
        )

    def _text(
        self, messages: Sequence[Mapping[str, Any]], tools: Any, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError

        from nemorun.llm.data.generation_tag import answers_of, new_marks

        marks = new_marks()
        try:
            text = self._template.render(
                {**self.marks, "messages": messages, "tools": tools, "add_generation_prompt": prompt},
                generation_marks=marks,
            )
        except (TemplateError, TypeError, KeyError, AttributeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"the {self.name} refuses the conversation: {error}") from None
        return answers_of(text, marks)

    @functools.cached_property
    def _template(self) -> Any:
        from jinja2 import TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        from nemorun.llm.data.generation_tag import GenerationTag

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _DATE.strftime
        try:
            return environment.from_string(self.source)
        except TemplateSyntaxError as error:
            raise TrainingError(
                f"the {self.name} is no Jinja template: line {error.lineno}: {error}"
            ) from None


def chat_template(chosen: str | Path | None, tokenizer: Tokenizer) -> ChatTemplate:
    """The template that is chosen (a file, or itself), else the tokenizer's, else a plain one."""
    if chosen is not None:
        if "{" in str(chosen):
            return ChatTemplate(str(chosen), tokenizer.marks, "data.chat_template")
        try:
            source = Path(chosen).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TrainingError(
                f"data.chat_template={chosen} is neither a template nor a file: {error}"
            ) from None
        return ChatTemplate(source, tokenizer.marks, f"chat template {chosen}")
    if tokenizer.chat_template is not None:
        return ChatTemplate(
            tokenizer.chat_template, tokenizer.marks, f"chat template of the tokenizer {tokenizer.name}"
        )
    return ChatTemplate(PLAIN, tokenizer.marks, "plain chat template", plain=True)


def _made(source: str, marks: dict[str, str], name: str, plain: bool) -> ChatTemplate:
    return ChatTemplate(source, marks, name, plain=plain)


def _tojson(value: Any, indent: int | None = None, **settings: Any) -> str:
    """As the hub's templates expect it: Jinja's own escapes characters for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **settings)


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
