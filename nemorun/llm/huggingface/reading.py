"""A Hugging Face checkpoint into a model that is divided over ranks: each reads its own part and no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from nemorun.llm.config import GPTConfig
from nemorun.llm.huggingface.files import TensorFiles
from nemorun.llm.huggingface.names import Entry, Part, model_entries
from nemorun.training.errors import TrainingError

#: Tensors that older checkpoints carry and that follow from config.json.
_IGNORED = ("rotary_emb.inv_freq",)
#: The names of adapters' parameters, which a model's checkpoint does not have.
_ADAPTERS = (".lora_a", ".lora_b")


def read_model(folder: str | Path, parameters: Mapping[str, Tensor], config: GPTConfig) -> None:
    """Fill the parameters of this rank, by their global names, from a Hugging Face folder; adapters stay.

    They may be plain tensors or DTensors of any placement, on any device but meta, and only some of the
    model's (a pipeline's stage). Never more than one of them is held besides. Raises TrainingError where a
    tensor is missing, superfluous or of another shape, and then nothing has been changed.
    """
    mine = {name: one for name, one in parameters.items() if not name.endswith(_ADAPTERS)}
    files = TensorFiles(folder)
    ignored = {name for name in files.names if name.endswith(_IGNORED)}
    if config.tie_embeddings:
        ignored.add("lm_head.weight")  # some checkpoints keep it although it is the embedding
    fill(mine, list(model_entries(config)), files, ignored)


@torch.no_grad()
def fill(
    parameters: Mapping[str, Tensor], entries: list[Entry], files: TensorFiles, ignored: Iterable[str] = ()
) -> None:
    """Fill `parameters` with what `entries` say they are made of, after all has been checked."""
    by_name = {entry.name: entry for entry in entries}
    expected = {part.name for entry in entries for part in entry.parts}
    unknown = [name for name in parameters if name not in by_name]
    if unknown:
        raise TrainingError(f"the model's {_some(unknown)} has no counterpart in {files.folder}")
    _same_names(expected, files.names - set(ignored), files.folder)
    for name, parameter in parameters.items():
        _same_shapes(by_name[name], parameter, files)
    for name, parameter in parameters.items():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter.data
        local.copy_(_own_part(by_name[name], held(parameter), local.dtype, files))


def held(parameter: Tensor) -> list[Tensor]:
    """For each dimension, which indices of the whole parameter this rank holds."""
    if not isinstance(parameter, DTensor):
        return [torch.arange(size) for size in parameter.shape]
    result = []
    for dim, size in enumerate(parameter.shape):
        # the same division of 0, 1, 2, … as this dimension has; each rank takes its part, nothing is sent
        placements = [_of_a_vector(one, dim) for one in parameter.placements]
        numbers = distribute_tensor(
            torch.arange(size, device=parameter.device), parameter.device_mesh, placements, src_data_rank=None
        )
        result.append(numbers.to_local().cpu())
    return result


def _of_a_vector(placement: Any, dim: int) -> Placement:
    """How a placement divides dimension `dim`, as a placement of the only dimension of a vector."""
    if getattr(placement, "dim", None) != dim:
        return Replicate()
    if hasattr(placement, "split_factor"):  # FSDP over what tensor parallelism has divided already
        strided: Placement = type(placement)(0, split_factor=placement.split_factor)
        return strided
    return Shard(0)


def _own_part(entry: Entry, held: list[Tensor], dtype: torch.dtype, files: TensorFiles) -> Tensor:
    """This rank's part of a parameter, on the CPU; rows that the checkpoint has not are 0."""
    out = torch.zeros([len(indices) for indices in held], dtype=dtype)
    for part in entry.parts:
        if part.expert is None:
            _read_into(out, part, held, files)
            continue
        for place in (held[0] == part.expert).nonzero().flatten().tolist():
            _read_into(out[place], part, held[1:], files)
    return out


def _read_into(out: Tensor, part: Part, held: list[Tensor], files: TensorFiles) -> None:
    """Read what `out` [rows, …] holds of a part: one range of the file, of which the rows are then taken."""
    rows, *others = held
    if part.places is None:
        ours, theirs = torch.arange(len(rows)), rows
    else:
        at = torch.searchsorted(part.places, rows).clamp(max=len(part.places) - 1)
        ours = (part.places[at] == rows).nonzero().flatten()
        theirs = at[ours]
    wanted = [theirs, *others]
    if any(not len(indices) for indices in wanted):
        return
    ranges = tuple(slice(int(indices.min()), int(indices.max()) + 1) for indices in wanted)
    piece = files.read(part.name, ranges)
    for dim, (indices, span) in enumerate(zip(wanted, ranges, strict=True)):
        if len(indices) != span.stop - span.start:  # there are gaps
            piece = piece.index_select(dim, indices - span.start)
    out[ours] = piece.to(out.dtype)


def _same_names(expected: set[str], given: set[str], folder: Path) -> None:
    problems = []
    if missing := sorted(expected - given):
        problems.append(f"lacks {_some(missing)}")
    if superfluous := sorted(given - expected):
        problems.append(f"has {_some(superfluous)}, which this model has not")
    if problems:
        raise TrainingError(
            f"{folder} {' and '.join(problems)}. Is it a checkpoint of this model? Its config.json tells"
        )


def _same_shapes(entry: Entry, parameter: Tensor, files: TensorFiles) -> None:
    if tuple(parameter.shape) != entry.shape:
        raise TrainingError(
            f"{entry.name} is {tuple(parameter.shape)} in the model and {entry.shape} by its configuration"
        )
    for part in entry.parts:
        if files.shape(part.name) != part.shape:
            raise TrainingError(
                f"{files.folder}: {part.name} is {files.shape(part.name)} there and {part.shape} in this "
                "model"
            )


def _some(names: list[str]) -> str:
    """The first few of the names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
