"""Text and examples as batches: tokenizers, token files, pre-training and fine-tuning data.

Importing it imports neither torch nor numpy. From the files to a batch:

    files.py        which files a source has, and which pieces of them one process reads
    tokenizer.py    text to tokens: byte_level.py, hub_tokenizer.py
    examples.py     a line of JSON as a conversation; chat.py writes it as text and says where the answers are
    encoders.py     a line as tokens; example_encoder.py: and which of them are learned
    tokenization.py whole sources as tokens, by many processes; shards.py is what each of them does
    token_files.py  the result on disk; cache.py makes one for a text that is given raw
    stream.py       documents as one long text, and windows of it; blend.py, shuffle.py: which comes when
    pretrain.py     batches to pre-train on
    packing.py      examples in rows; finetune.py: batches of them
    prefetch.py     batches read ahead
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun.lazy import lazily

if TYPE_CHECKING:
    from nemorun.llm.data.byte_level import END
    from nemorun.llm.data.config import DataConfig, FinetuneDataConfig
    from nemorun.llm.data.finetune import FinetuneData
    from nemorun.llm.data.prefetch import Prefetched
    from nemorun.llm.data.pretrain import PretrainData
    from nemorun.llm.data.tokenization import tokenize
    from nemorun.llm.data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "END",
    "DataConfig",
    "FinetuneData",
    "FinetuneDataConfig",
    "Prefetched",
    "PretrainData",
    "Tokenizer",
    "load_tokenizer",
    "tokenize",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        ".byte_level": ("END",),
        ".config": ("DataConfig", "FinetuneDataConfig"),
        ".finetune": ("FinetuneData",),
        ".prefetch": ("Prefetched",),
        ".pretrain": ("PretrainData",),
        ".tokenization": ("tokenize",),
        ".tokenizer": ("Tokenizer", "load_tokenizer"),
    },
)
