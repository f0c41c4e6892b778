"""Attention: which kernel does it, packed documents, and context parallelism (`ring_attend`).

    documents = Documents(positions, device)  # once for each micro-batch; None if a row is one document
    mixed = attend(query, key, value, documents)

and with context parallelism, on rank `rank` of the `size` of `group`, where tokens, labels and positions have
gone through `split_sequence(x, rank, size)`:

    documents = Documents(positions_of_whole_rows, device, rank, size)
    mixed = ring_attend(query, key, value, documents, group)
"""

from nemorun.training.attention.documents import Documents
from nemorun.training.attention.kernels import ATTENTION_OPERATORS, attend, kernel_name
from nemorun.training.attention.ring import ring_attend
from nemorun.training.attention.zigzag import join_sequence, split_sequence

__all__ = [
    "ATTENTION_OPERATORS",
    "Documents",
    "attend",
    "join_sequence",
    "kernel_name",
    "ring_attend",
    "split_sequence",
]
