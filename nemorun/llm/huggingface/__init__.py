"""Hugging Face checkpoints and PEFT adapters, in and out. Importing it imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun.lazy import lazily

if TYPE_CHECKING:
    from nemorun.llm.huggingface.adapters import read_adapter, read_lora, write_adapter
    from nemorun.llm.huggingface.config import check_base, from_huggingface, read_config, to_huggingface
    from nemorun.llm.huggingface.files import TensorFiles
    from nemorun.llm.huggingface.reading import read_model
    from nemorun.llm.huggingface.writing import write_model

__all__ = [
    "TensorFiles",
    "check_base",
    "from_huggingface",
    "read_adapter",
    "read_config",
    "read_lora",
    "read_model",
    "to_huggingface",
    "write_adapter",
    "write_model",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        ".adapters": ("read_adapter", "read_lora", "write_adapter"),
        ".config": ("check_base", "from_huggingface", "read_config", "to_huggingface"),
        ".files": ("TensorFiles",),
        ".reading": ("read_model",),
        ".writing": ("write_model",),
    },
)
