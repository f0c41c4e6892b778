"""Checkpoints that are complete or not there, written while training goes on, read on any number of ranks.

A checkpoint is a folder `step-00000100`:

    rank-00003.0.safetensors   parts of tensors: what torch.distributed.checkpoint has rank 3 write
    index.json                 which part of which tensor lies where
    state.json                 step, data position, and size and checksum of every file; written last

Until all of it is on disk the folder is called `step-00000100.tmp`: a killed save leaves the one before it.
There is no pickle in it, so that loading a stranger's checkpoint runs nothing of theirs.

`folder` knows the files and what is wrong with them, `storage` how tensors lie in them, `state` which tensors
make up a run, `staging` how they leave the device without holding up training; `checkpointer` joins these.
"""

from nemorun.training.checkpoint.checkpointer import Checkpointer
from nemorun.training.checkpoint.folder import complete, damage

__all__ = ["Checkpointer", "complete", "damage"]
