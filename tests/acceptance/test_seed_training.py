"""The design document's snippets about models and trainers, with only import lines and sizes changed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

MODEL_AND_TRAINER = """
    import torch
    from nemorun.llm import GPTModel, GPTConfig
    from nemorun.training import Trainer

    # Model configuration
    config = GPTConfig(
        hidden_size={hidden},
        num_layers={layers},
        num_attention_heads=32,
        ffn_hidden_size={ffn},
        seq_length={length},
    )

    # Create model
    model = GPTModel(config)

    tokens = torch.randint(0, config.vocab_size, (2, {length} + 1))
    train_dataloader = [(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())]

    # Trainer
    trainer = Trainer(
        max_steps={steps},
        precision="bf16-mixed",
        accelerator="{accelerator}",
        devices={devices},
        strategy="ddp"
    )

    # Train
    trainer.fit(model, train_dataloader)
"""
AS_WRITTEN = {
    "hidden": 4096,
    "layers": 32,
    "ffn": 14336,
    "length": 4096,
    "steps": 100000,
    "accelerator": "gpu",
    "devices": 8,
}
SMALL = {"hidden": 64, "layers": 2, "ffn": 128, "length": 16, "steps": 3, "accelerator": "cpu", "devices": 2}


def run(folder: Path, command: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
    script = folder / "snippet.py"
    script.write_text(textwrap.dedent(MODEL_AND_TRAINER).format(**settings))
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [*command, str(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={**env, "OMP_NUM_THREADS": "1", "NEMORUN_TENSORBOARD": "0"},
    )


def test_a_model_is_trained_on_two_ranks(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = run(tmp_path, torchrun, **SMALL)
    assert done.returncode == 0, done.stderr
    assert "step 3/3" in done.stdout
    assert (tmp_path / "results" / "metrics.jsonl").read_text().count("loss")


def test_as_it_is_written_it_says_how_to_start_its_ranks(tmp_path: Path) -> None:
    """And it makes the model of 8 billion parameters in no time, because nothing is in it yet."""
    done = run(tmp_path, [sys.executable], **AS_WRITTEN)
    assert done.returncode != 0
    assert "trainer.devices=8 are 8 ranks, but WORLD_SIZE is 1. Start it with `nemorun run`" in done.stderr
