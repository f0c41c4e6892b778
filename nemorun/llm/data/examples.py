"""A line of JSON as an example to fine-tune on: the forms that are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nemorun.llm.data.encoders import without_surrogates

_PROMPTS = ("prompt", "instruction", "input")
_ANSWERS = ("completion", "output", "response")
#: Roles of ShareGPT's form.
_ROLES = {"human": "user", "gpt": "assistant"}
_FORMS = (
    "'messages', or one of 'prompt', 'instruction', 'input' with one of 'completion', 'output', 'response', "
    "or 'text'"
)


class Conversation(NamedTuple):
    """Turns, each with a role and content."""

    messages: list[dict[str, Any]]
    tools: Any = None


def example_of(record: Mapping[str, Any]) -> Conversation | str:
    """A conversation, or a text. Raises ValueError that says what is wrong with the record.

    A prompt and its answer are a conversation of two turns, or three with `system`.
    """
    if "messages" in record:
        return Conversation(_messages(record["messages"], "messages"), record.get("tools"))
    if "conversations" in record:
        turns = record["conversations"]
        if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
            turns = [
                {"role": _role(turn), "content": turn.get("value", turn.get("content"))} for turn in turns
            ]
        return Conversation(_messages(turns, "conversations"))
    prompt_key = next((key for key in _PROMPTS if key in record), None)
    answer_key = next((key for key in _ANSWERS if key in record), None)
    if prompt_key and answer_key:
        return _pair(record, prompt_key, answer_key)
    if "text" in record:
        return _text(record["text"], "text")
    fields = ", ".join(map(repr, list(record)[:6])) or "none"
    raise ValueError(f"no known form: the fields are {fields}, and {_FORMS} is needed")


def _pair(record: Mapping[str, Any], prompt_key: str, answer_key: str) -> Conversation:
    prompt, answer = record[prompt_key], record[answer_key]
    if isinstance(prompt, list) and isinstance(answer, list):  # both are turns
        return Conversation(
            _messages(prompt, prompt_key) + _messages(answer, answer_key), record.get("tools")
        )
    # "input" is the context of an "instruction", as in Alpaca's data
    context_key = "context" if "context" in record else "input" if prompt_key == "instruction" else None
    parts = [_text(prompt, prompt_key)]
    if context_key and record.get(context_key):
        parts.append(_text(record[context_key], context_key))
    messages = [
        {"role": "user", "content": "\n\n".join(parts)},
        {"role": "assistant", "content": _text(answer, answer_key)},
    ]
    if record.get("system"):
        messages.insert(0, {"role": "system", "content": _text(record["system"], "system")})
    return Conversation(messages)


def _messages(found: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(found, list) or not found:
        raise ValueError(f"{key!r} is no list of turns")
    messages = []
    for place, message in enumerate(found):
        where = f"{key}[{place}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"{where} is no object with a 'role'")
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            content = ""
        elif isinstance(content, list):  # parts, as the chat API has them
            if not all(isinstance(part, dict) and part.get("type", "text") == "text" for part in content):
                raise ValueError(f"{where}.content has a part that is no text")
            content = "".join(_text(part.get("text"), f"{where}.content") for part in content)
        messages.append({**message, "content": _text(content, f"{where}.content")})
    return messages


def _role(turn: Mapping[str, Any]) -> Any:
    role = turn.get("from", turn.get("role"))
    return _ROLES.get(role, role) if isinstance(role, str) else role


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} is no text but {type(value).__name__}")
    return without_surrogates(value)
