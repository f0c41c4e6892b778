"""The Kubernetes executor: manifests that a dry run prints, sent to the API server and followed there."""

from nemorun.executors.kubernetes.executor import KubernetesExecutor

__all__ = ["KubernetesExecutor"]
