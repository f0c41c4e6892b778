"""Runs jobs on a Kubernetes cluster: manifests that a dry run prints, sent to the API server and followed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemorun.lazy import lazily

if TYPE_CHECKING:
    from nemorun.executors.kubernetes.executor import KubernetesExecutor

__all__ = ["KubernetesExecutor"]

__getattr__, __dir__ = lazily(__name__, {".executor": ("KubernetesExecutor",)})
