"""Where a run's numbers go: `metrics.jsonl`, TensorBoard, Weights & Biases. The first rank writes them."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from nemorun.training.config import LogConfig
from nemorun.training.errors import TrainingError
from nemorun.training.progress import say


def results_folder(config: LogConfig) -> Path:
    return Path(config.dir or os.environ.get("NEMORUN_RESULTS_DIR") or "results").absolute()


def writes_tensorboard(config: LogConfig) -> bool:
    if config.tensorboard is None:
        return os.environ.get("NEMORUN_TENSORBOARD") != "0"
    return config.tensorboard


class Metrics:
    """Writes scalars by step. Made with the step that the run goes on from: what was logged later is dropped.

    A run that was killed after its last checkpoint has logged steps that it will do again.
    """

    def __init__(self, config: LogConfig, step: int) -> None:
        folder = results_folder(config)
        folder.mkdir(parents=True, exist_ok=True)
        self._failed = False
        self._file = _reopen(folder / "metrics.jsonl", step)
        self._tensorboard = _tensorboard(config, folder, step)
        self._wandb = _wandb(folder)

    def write(self, step: int, **values: float) -> None:
        """Log `values`. A full disk costs the numbers, with one warning, and not the run."""
        try:
            self._write(step, values)
        except OSError as error:
            if not self._failed:
                say(f"warning: metrics are not written any more: {error}. Training goes on")
            self._failed = True

    def _write(self, step: int, values: dict[str, float]) -> None:
        # In one write without a buffer: what has no room must not come later, with a line that has.
        self._file.write((json.dumps({"step": step, **values}) + "\n").encode())
        if self._tensorboard:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)

    def close(self) -> None:
        self._file.close()
        if self._tensorboard:
            with contextlib.suppress(OSError):
                self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def _reopen(path: Path, step: int) -> Any:
    kept = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # The line that was being written when the run was killed.
        if entry["step"] <= step:
            kept.append(line + "\n")
    rewritten = path.with_suffix(".tmp")
    rewritten.write_text("".join(kept))
    rewritten.replace(path)
    return path.open("ab", buffering=0)


def _tensorboard(config: LogConfig, folder: Path, step: int) -> Any:
    if not writes_tensorboard(config):
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("warning: no TensorBoard events, because tensorboard is not installed: pip install tensorboard")
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def _wandb(folder: Path) -> Any:
    text = os.environ.get("NEMORUN_WANDB")
    if not text:
        return None
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise TrainingError(f"NEMORUN_WANDB={text!r} is not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise TrainingError(f"NEMORUN_WANDB={text!r} must be a JSON object: the arguments of wandb.init")
    try:
        import wandb  # type: ignore[import-not-found,unused-ignore]  # an extra that is not ours
    except ImportError as error:
        raise TrainingError(
            "Weights & Biases was asked for, but wandb is not installed: pip install wandb"
        ) from error
    # A run that is started again goes on in the same place.
    marker = os.environ.get("NEMORUN_TOKEN")
    return wandb.init(
        **{"dir": str(folder), "id": marker, "resume": "allow" if marker else None, **arguments}
    )
