"""Four real ranks that share a model read their parts of it and write it together, adapters included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nemorun.executors.local.ports import reserve_port
from tests.llm.huggingface.ranks import LAYOUTS
from tests.llm.huggingface.test_adapters import adapted


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}


@pytest.mark.slow
def test_ranks_read_their_parts_and_write_the_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for family in ("Llama", "Mixtral"):
        adapted(family, source / family)
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.llm.huggingface.ranks", str(source), str(target)],
                env=os.environ
                | {"RANK": str(rank), "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=Path(__file__).parents[3],
            )
            for rank in range(4)
        ]
        outputs = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * 4, "\n".join(outputs)
    for family in ("Llama", "Mixtral"):
        base, peft = tensors(source / family / "base"), tensors(source / family / "peft")
        for layout in LAYOUTS:
            found = target / family / layout.__name__
            for before, after in ((base, tensors(found / "model")), (peft, tensors(found / "adapter"))):
                assert before.keys() == after.keys()
                assert all(torch.equal(before[name], after[name]) for name in before), layout.__name__
            merged = tensors(found / "merged")
            assert not torch.equal(merged[q := "model.layers.1.self_attn.q_proj.weight"], base[q])
