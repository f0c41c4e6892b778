"""What Kubernetes says of pods that wait or have ended, in plain words. Pure: objects in, sentences out."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nemorun.job import EXIT_RESUME, Reason

Object = dict[str, Any]

#: A container's reasons to wait which nothing but a change, or a repair, ends.
_IMAGE = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"}
_IMAGE |= {"RegistryUnavailable", "SignatureValidationFailed"}
_BROKEN = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PostStartHookError"}

#: What stands before the part of a message that tells something.
_PULL_NOISE = re.compile(
    r"^(Failed to pull image \"[^\"]*\": |rpc error: code = \w+ desc = "
    r"|failed to pull and unpack image \"[^\"]*\": |failed to resolve reference \"[^\"]*\": "
    r"|failed to do request: )+"
)
_START_NOISE = re.compile(
    r"^(failed to [^:]*: |OCI runtime create failed: |runc create failed: |unable to [^:]*: )+"
)

#: Of a condition DisruptionTarget: who ended the pod.
_DISRUPTIONS = {
    "PreemptionByScheduler": (Reason.PREEMPTED, "by pods of higher priority"),
    "PreemptionByKubeScheduler": (Reason.PREEMPTED, "by pods of higher priority"),
    "EvictionByEvictionAPI": (Reason.EVICTED, "its node is being emptied"),
    "DeletionByTaintManager": (Reason.NODE_FAILURE, "its node has a taint that the pod does not tolerate"),
    "DeletionByPodGC": (Reason.NODE_FAILURE, "its node is gone"),
    "TerminationByKubelet": (Reason.EVICTED, "its node ran short of resources, or is being shut down"),
}
#: A failed pod's own reason.
_POD_REASONS = {
    "Evicted": Reason.EVICTED,
    "Preempting": Reason.PREEMPTED,
    "Preempted": Reason.PREEMPTED,
    "DeadlineExceeded": Reason.TIMEOUT,
    "NodeLost": Reason.NODE_FAILURE,
    "NodeShutdown": Reason.NODE_FAILURE,
    "Shutdown": Reason.NODE_FAILURE,
    "Terminated": Reason.NODE_FAILURE,
}


@dataclass(frozen=True)
class End:
    """How a container ended."""

    reason: Reason
    words: str
    code: int | None = None


def timestamp(text: str | None) -> float | None:
    """Seconds since the epoch; None for none, and for the zero of Go's clock."""
    if not text:
        return None
    with suppress(ValueError):
        at = datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text).replace("Z", "+00:00")).timestamp()
        return at if at > 0 else None
    return None


def container_status(pod: Object) -> Object:
    """Of the container that runs the ranks: the first; empty while there is none yet."""
    containers = pod.get("spec", {}).get("containers") or [{}]
    name = containers[0].get("name")
    found = (one for one in pod.get("status", {}).get("containerStatuses") or () if one["name"] == name)
    return next(found, {})


def condition(thing: Object, kind: str, status: str = "True") -> Object:
    """The condition of that type where it is true, or has another status; else empty."""
    conditions = thing.get("status", {}).get("conditions") or ()
    return next((one for one in conditions if one["type"] == kind and one["status"] == status), {})


def node_of(pod: Object) -> str:
    return str(pod.get("spec", {}).get("nodeName") or "")


def waiting(pod: Object, events: Iterable[Object] = ()) -> tuple[Reason, str] | None:
    """Why a pod does not run yet, where it is known; None where it is just on its way."""
    conditions = pod.get("status", {}).get("conditions") or ()
    for one in conditions:
        if one["type"] == "PodScheduled" and one["status"] == "False":
            return _unscheduled(one)
    status = pod.get("status", {})
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    for container in containers:
        state = (container.get("state") or {}).get("waiting") or {}
        why, said = state.get("reason", ""), _one_line(state.get("message", ""))
        if why in _IMAGE:
            return Reason.IMAGE, _image(container, why, said, events)
        if why == "CrashLoopBackOff":
            return Reason.BACKOFF, said
        if why in _BROKEN:
            return Reason.NEVER, said or why
    for event in events:
        if event.get("reason") in ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"):
            return Reason.NEVER, _one_line(event.get("message", ""))
    return None


def _unscheduled(scheduled: Object) -> tuple[Reason, str]:
    if scheduled.get("reason") == "SchedulingGated":
        return Reason.HELD, "its pods may not be scheduled yet (scheduling gates)"
    # what the scheduler says of preemption repeats the same nodes
    said = re.split(r" ?preemption: ", _one_line(scheduled.get("message", "")))[0]
    never = re.search(r"persistentvolumeclaim \"[^\"]*\" (not found|is being deleted)", said)
    return (Reason.NEVER, never[0]) if never else (Reason.RESOURCES, said)


def _image(container: Object, why: str, said: str, events: Iterable[Object]) -> str:
    """While the kubelet waits to try again, only an event still says what went wrong."""
    if why == "ImagePullBackOff" or not said:
        told = (_one_line(event.get("message", "")) for event in events if event.get("reason") == "Failed")
        said = next((one for one in told if one.startswith("Failed to pull")), said)
    image = container.get("image", "")
    if why == "ErrImageNeverPull":
        return f"{image} is not on the node, and image_pull_policy is Never"
    words = _PULL_NOISE.sub("", said).split("invalid reference format: ")[-1]
    return f"{image}: {words}" if image not in words else words


def without_pods(events: Iterable[Object]) -> tuple[Reason, str] | None:
    """Why a workload's pods are not created: the controller's last event says it."""
    for event in events:
        said = _one_line(event.get("message", ""))
        if event.get("reason") not in ("FailedCreate", "FailedCreatePod") or not said:
            continue
        if over := re.search(r"exceeded quota: (\S+), requested: (.*), used: (.*), limited: (.*)", said):
            name, asked, used, limit = over.groups()
            return (
                Reason.QUOTA,
                f"quota '{name}' allows {limit}; {used} is in use, and a pod asks for {asked}",
            )
        words = re.sub(r"^Error creating: pods? \"[^\"]*\" is ", "a pod is ", said)
        return (Reason.QUOTA if "quota" in said else Reason.NEVER), words
    return None


def ended(pod: Object) -> End | None:
    """How a pod's container, or the pod before it had one, ended; None while it has not."""
    terminated = (container_status(pod).get("state") or {}).get("terminated")
    if terminated is None and pod.get("status", {}).get("phase") not in ("Failed", "Succeeded"):
        return None
    return how_ended(pod, terminated or {})


def how_ended(pod: Object, terminated: Mapping[str, Any]) -> End:
    status = pod.get("status", {})
    # an operator may want another code for "to be resumed" than ours
    code = report(terminated.get("message") or "").get("exit_code", terminated.get("exitCode"))
    said = _one_line(status.get("message") or "")
    if status.get("phase") == "Succeeded" or code == 0:
        return End(Reason.NONE, "", 0)
    if terminated.get("reason") == "OOMKilled":
        return End(Reason.OUT_OF_MEMORY, "it used more memory than its limit; ask for more with memory", code)
    if code == EXIT_RESUME:  # it has saved its state: whoever ended it, nothing is lost
        return End(Reason.PREEMPTED, "it has saved its state to be resumed", code)
    if disrupted := condition(pod, "DisruptionTarget"):
        why = disrupted.get("reason", "")
        return End(*_DISRUPTIONS.get(why, (Reason.EVICTED, disrupted.get("message") or why)), code)
    own = status.get("reason")
    if own in _POD_REASONS:
        return End(_POD_REASONS[own], said, code)
    if (
        own and terminated.get("exitCode") is None
    ):  # the node's kubelet did not take it: UnexpectedAdmissionError …
        return End(Reason.NODE_FAILURE, said or own, code)
    if terminated.get("reason") in ("StartError", "ContainerCannotRun"):
        words = _START_NOISE.sub("", _one_line(terminated.get("message", ""))).removesuffix(": unknown")
        return End(Reason.EXIT_CODE, f"its container could not be started: {words}", code)
    if code is None:
        return End(Reason.EXIT_CODE, said or "it says nothing of its end", None)
    reason = Reason.SIGNAL if code > 128 else Reason.EXIT_CODE
    return End(reason, _last_word(terminated.get("message") or ""), code)


def report(message: str) -> Object:
    """What the pod's supervisor has left: `{"attempt": 2, "rank": 3, "exit_code": 1, "error": "..."}`."""
    with suppress(ValueError):
        found = json.loads(message)
        if isinstance(found, dict):
            return found
    return {}


def _last_word(message: str) -> str:
    said = report(message)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return str(said.get("error") or "") if said else lines[-1][-300:] if lines else ""


def code_in_words(code: int | None) -> str:
    if code is None:
        return "an unknown exit code"
    if code > 128:
        with suppress(ValueError):
            return f"{code} ({signal.Signals(code - 128).name})"
    return str(code)


def _one_line(text: str) -> str:
    return " ".join(text.split())
