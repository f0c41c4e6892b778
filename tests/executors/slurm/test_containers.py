"""Containers of every runtime see the same: the task's own variables before the image's."""

from __future__ import annotations

import re

import pytest

from nemorun.executors.slurm.interactive import _enter_container
from nemorun.executors.slurm.script import render

from .scripts import cluster, job


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_what_is_set_for_the_task_wins_over_the_image(runtime: str) -> None:
    executor = cluster(
        container_image="i.sif", container_runtime=runtime, container_env=["CUDA_HOME"], venv="/v"
    )
    task = job(env={"MINE": "it's"}, secrets=("KEY",))
    script = render([(executor, task)]).text
    for text in (script, _enter_container(executor, task)):
        handed = re.findall(r"^ *export APPTAINERENV_(\w+)=", text, re.M)
        if listed := re.search(r"--container-env=([\w,]+)", text):
            handed += listed[1].split(",")
        assert handed == ["CUDA_HOME", "KEY", "MINE", "PYTHONPATH", "VIRTUAL_ENV"]
