"""A recipe with every type that a configuration may hold; importable, so that it can be written to YAML."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nemorun as run


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Lora:
    enabled: bool = False
    rank: int = 8


@dataclass
class Model:
    hidden_size: int = 64
    """Width of the residual stream."""
    num_heads: int = 4
    lora: Lora = field(default_factory=Lora)
    adapter: Lora | None = None

    def validate(self) -> None:
        assert self.hidden_size % self.num_heads == 0


@dataclass
class WideModel(Model):
    hidden_size: int = 512


@dataclass
class Trainer:
    max_steps: int = 100
    """Optimizer steps
    in all."""
    lr: float = 1e-3
    name: str = "run"
    note: str | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    level: Literal[1, 2, 3] = 1
    color: Color = Color.RED
    folder: Path = Path("out")
    betas: tuple[float, float] = (0.9, 0.95)
    sizes: tuple[int, ...] = ()
    tags: set[str] = field(default_factory=set)
    layers: list[Lora] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    table: dict[int, list[float]] = field(default_factory=dict)
    either: int | str | None = None
    limit: int | float | None = None
    hook: Callable[[int], int] | None = None
    error: type[Exception] = ValueError
    bare_list: list = field(default_factory=list)  # type: ignore[type-arg]
    bare_dict: dict = field(default_factory=dict)  # type: ignore[type-arg]
    run_id: str = ""
    exclusive: bool = True


def train(model: Model, trainer: Trainer, data: Any = None, steps: int = 1) -> dict[str, Any]:
    """Pretend to train.

    Args:
        model: What is trained.
        steps (int): How often,
            in all.
    """
    return {"hidden_size": model.hidden_size, "max_steps": trainer.max_steps, "steps": steps}


def untyped(model, value=None, n=1):  # type: ignore[no-untyped-def]
    return model, value, n


@run.factory
def tiny(hidden_size: int = 64, name: str = "tiny") -> run.Partial[Any]:
    """A small recipe.

    More about it.
    """
    return run.Partial(train, model=Model(hidden_size=hidden_size), trainer=Trainer(name=name))


@run.factory
def big_model(hidden_size: int = 1024, num_heads: int = 8) -> run.Config[Model]:
    return run.Config(Model, hidden_size=hidden_size, num_heads=num_heads)
