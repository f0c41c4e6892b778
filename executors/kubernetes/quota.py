"""What a task asks of its namespace's quotas, and what they leave for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from nemorun.executors.kubernetes.api import Object
from nemorun.executors.kubernetes.quantities import amount


class Share(NamedTuple):
    """One resource of one quota, and what a task asks of it."""

    quota: str
    resource: str
    hard: str
    used: str
    asked: float

    @property
    def never(self) -> bool:
        """Whether the task asks for more than the quota allows at all."""
        return self.asked > amount(self.hard)

    @property
    def left(self) -> bool:
        return self.asked <= amount(self.hard) - amount(self.used)

    def __str__(self) -> str:
        return f"{self.used} of {self.hard} {self.resource} are used"


def wanted(pods: int, resources: Mapping[str, Mapping[str, str | int]]) -> dict[str, float]:
    """Resource, as a quota names it -> what so many pods ask for whose containers have these resources.

    A limit without a request is a request, too. Quotas call that of CPUs and memory by two names.
    """
    limits = resources.get("limits", {})
    requests = {**limits, **resources.get("requests", {})}
    found = {f"requests.{name}": pods * amount(value) for name, value in requests.items()}
    found |= {f"limits.{name}": pods * amount(value) for name, value in limits.items()}
    found |= {name: found[f"requests.{name}"] for name in ("cpu", "memory") if name in requests}
    return {"pods": pods, **found}


def shares(quotas: list[Object], asked: dict[str, float]) -> Iterator[Share]:
    """Of each ResourceQuota, each resource that is asked for."""
    for quota in quotas:
        hard, used = (quota.get("status", {}).get(key, {}) for key in ("hard", "used"))
        for resource, count in asked.items():
            if count and resource in hard:
                name = quota["metadata"]["name"]
                yield Share(name, resource, str(hard[resource]), str(used.get(resource, 0)), count)
