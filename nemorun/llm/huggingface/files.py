"""The tensors of a folder's safetensors files, by name. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nemorun.llm.huggingface.config import read_json
from nemorun.training.errors import TrainingError

INDEX = "{stem}.safetensors.index.json"
SINGLE = "{stem}.safetensors"


#: Bytes at each end of a file that tell it from others.
_ENDS = 1 << 16


class TensorFiles:
    """Tensors by name; a file is mapped into memory when one of its tensors is first asked for."""

    def __init__(self, folder: str | Path, stem: str = "model") -> None:
        """Raises TrainingError if there are no such files: `model.safetensors`, or an index and its parts."""
        self.folder = Path(folder).expanduser()
        self._open: dict[str, Any] = {}
        self._file_of = self._find(stem)

    @property
    def names(self) -> set[str]:
        return set(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def read(self, name: str, ranges: tuple[slice, ...]) -> Tensor:
        """A part of a tensor, in the type that it is stored in."""
        part: Tensor = self._slice(name)[ranges]
        return part

    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell these weights from others, without reading all of them.

        They cover each file's size, the names and shapes at its beginning, and 64 KiB of values at its end;
        where the folder lies makes no difference.
        """
        digest = hashlib.sha256()
        for name in sorted(set(self._file_of.values())):
            with (self.folder / name).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(f"{name}:{size}:".encode())
                for start in (0, max(0, size - _ENDS)):
                    file.seek(start)
                    digest.update(file.read(_ENDS))
        return digest.hexdigest()[:16]

    def _find(self, stem: str) -> Mapping[str, str]:
        single = SINGLE.format(stem=stem)
        index = INDEX.format(stem=stem)
        if (self.folder / index).is_file():
            return self._of_index(index)
        if (self.folder / single).is_file():
            return dict.fromkeys(self._file(single).keys(), single)
        pickles = [path.name for path in self.folder.glob("*.bin")] if self.folder.is_dir() else []
        if pickles:
            raise TrainingError(
                f"{self.folder} holds {pickles[0]} and no {single}: such files are pickles, which can run "
                "code when they are read, and are not opened. Where you trust them, write them anew with "
                "transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
            )
        raise TrainingError(
            f"{self.folder} holds neither {single} nor {index}: name a folder as save_pretrained writes it, "
            "on this machine"
        )

    def _of_index(self, index: str) -> dict[str, str]:
        found = read_json(self.folder, index).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise TrainingError(f"{self.folder / index} has no weight_map of tensor to file")
        for name, file in found.items():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise TrainingError(
                    f"{self.folder / index} keeps {name} in {file!r}; only .safetensors files of the same "
                    "folder are read"
                )
        return found

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self.folder / name
            try:
                self._open[name] = safe_open(path, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise TrainingError(f"{path} cannot be read as safetensors: {error}") from None
        return self._open[name]

    def _slice(self, name: str) -> Any:
        file = self._file_of[name]
        try:
            return self._file(file).get_slice(name)
        except SafetensorError as error:
            raise TrainingError(f"{self.folder / file} has no {name}, as its index says: {error}") from None
