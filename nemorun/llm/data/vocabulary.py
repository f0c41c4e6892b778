"""The tokens of the data and those of the model."""

from __future__ import annotations

from typing import Any

from nemorun.training.errors import TrainingError


def check_vocabulary(tokenizer: dict[str, Any], vocab_size: int | None, what: str) -> None:
    """The model must have a row for each token. Raises TrainingError."""
    found = tokenizer["vocab_size"]
    if vocab_size is not None and found > vocab_size:
        raise TrainingError(
            f"{what} has {found} tokens (tokenizer {tokenizer['name']}), and model.vocab_size={vocab_size} "
            f"is less: set model.vocab_size={found} or more"
        )
