"""Changes written as text: `trainer.max_steps=200`, `layers[0].x+=1`, `@file.yaml:section`."""

from nemorun.config.overrides.applying import apply
from nemorun.config.overrides.grammar import Override, Step, expand_sweep, split_override

__all__ = ["Override", "Step", "apply", "expand_sweep", "split_override"]
