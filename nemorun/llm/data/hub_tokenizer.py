"""Tokenizers in the form of the Hugging Face hub: `tokenizer.json` and `tokenizer_config.json`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemorun.llm.data.tokenizer import Placed
from nemorun.training.errors import TrainingError

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
#: Tokens that end a text, of models whose folder does not say which does.
_KNOWN_ENDS = ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<|im_end|>", "[EOS]")


class HubTokenizer:
    """A tokenizer from a folder with `tokenizer.json`."""

    takes_any_bytes = False

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._source = _read(folder)
        self._plain = self._backend()
        self._plain.encode_special_tokens = True  # special tokens that stand in a text are text
        settings = _settings(folder)
        self.marks = {
            key: text for key, value in settings.items() if key.endswith("_token") and (text := _text(value))
        }
        self.chat_template = _chat_template(folder, settings)
        self.vocab_size = max(self._plain.get_vocab(with_added_tokens=True).values()) + 1
        if "eos_token" not in self.marks:
            known = [text for text in _KNOWN_ENDS if self._plain.token_to_id(text) is not None]
            if not known:
                raise TrainingError(
                    f"the tokenizer in {folder} does not say which token ends a text: "
                    'put {"eos_token": "…"} into its tokenizer_config.json'
                )
            self.marks["eos_token"] = known[0]
        self.eos = self._id("eos_token")
        self.bos = self._id("bos_token") if "bos_token" in self.marks else None
        self.fingerprint = hashlib.sha256(f"{self.eos} {self.bos} {self._source}".encode()).hexdigest()[:16]

    def __reduce__(self) -> tuple[Any, ...]:
        return HubTokenizer, (self.folder, self.name)  # each process reads it for itself

    def encode(self, text: str) -> list[int]:
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [found.ids for found in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_marked(self, texts: list[str], *, whole: bool) -> list[Placed]:
        found = self._marked.encode_batch(texts, add_special_tokens=whole)
        return [Placed(one.ids, one.offsets) for one in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self._plain.decode(list(ids), skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for name in _FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)

    @functools.cached_property
    def _marked(self) -> Any:
        """The same tokenizer with an eye for special tokens."""
        return self._backend()

    def _backend(self) -> Any:
        from tokenizers import Tokenizer

        try:
            backend = Tokenizer.from_str(self._source)
        except Exception as error:  # noqa: BLE001 - it raises Exception itself
            raise TrainingError(f"{self.folder / 'tokenizer.json'} cannot be read: {error}") from None
        backend.no_truncation()  # a file may ask for both, and they are the data's business
        backend.no_padding()
        return backend

    def _id(self, mark: str) -> int:
        found = self._plain.token_to_id(self.marks[mark])
        if found is None:
            raise TrainingError(
                f"the tokenizer in {self.folder} names {mark}={self.marks[mark]!r}, which its tokenizer.json "
                "does not have: mend its tokenizer_config.json"
            )
        return int(found)


def download(name: str) -> Path:
    """The folder with the tokenizer of a model on the hub; one that is there already is not fetched again."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise TrainingError(
            f"tokenizer={name} is no folder here, and to ask the Hugging Face hub for it "
            "`pip install huggingface_hub` is needed"
        ) from None
    try:
        folder = Path(hf_hub_download(name, _FILES[0])).parent
        for file in _FILES[1:]:
            with contextlib.suppress(EntryNotFoundError):  # not every model has each
                hf_hub_download(name, file)
    except (OSError, ValueError) as error:  # no network, no such model or file, or one that needs a login
        said = str(error).strip().partition("\n")[0]
        raise TrainingError(
            f"tokenizer={name} is no folder here, and the Hugging Face hub did not give its tokenizer.json: "
            f"{said} Without a network give a folder; a gated model needs HF_TOKEN"
        ) from None
    return folder


def _read(folder: Path) -> str:
    try:
        return (folder / "tokenizer.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        if (folder / "tokenizer.model").exists():
            convert = f"AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
            raise TrainingError(
                f"{folder} has only tokenizer.model, in the form of SentencePiece, and tokenizer.json is "
                "needed. Where transformers and sentencepiece are installed, this writes it: "
                f'python -c "from transformers import AutoTokenizer; {convert}"'
            ) from None
        raise TrainingError(
            f"{folder} has no tokenizer.json: give the folder of a tokenizer, the id of a model on the "
            "Hugging Face hub, or bytes"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None


def _settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, over `special_tokens_map.json`."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            found |= json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError) as error:
            raise TrainingError(f"{folder / name} cannot be read: {error}") from None
    return found


def _text(value: Any) -> str:
    """A special token, which is written as a text or as an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """Newer folders have it in a file of its own; older ones may have several, by name."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found}
        found = named.get("default") or next(iter(named.values()), None)
    return found if isinstance(found, str) else None
