"""From objects as the API server gives them to one status: a table.

`recorded.json` holds what a real cluster said; what it cannot do (evictions, Kueue, operators) is made like
what is published of them.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from nemorun.executors.kubernetes.attempts import Attempt, brought_up_to_date, index_of, read, remember
from nemorun.executors.kubernetes.reasons import timestamp
from nemorun.executors.kubernetes.states import Evidence, status
from nemorun.job import JobState, JobStatus, Reason

RECORDED: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("recorded.json").read_text(encoding="utf-8")
)
Object = dict[str, Any]


def seen(name: str, **fields: Any) -> Evidence:
    case = copy.deepcopy(RECORDED[name])
    events = sorted(case["events"], key=lambda event: event["lastTimestamp"] or "", reverse=True)
    facts = {
        "now": 2e9,
        "handle": f"job/ml/{name}",
        "workload": case["job"],
        "pods": case["pods"],
        "events": events,
        "attempts": brought_up_to_date([], case["pods"]),
        **fields,
    }
    return Evidence(**facts)


@pytest.mark.parametrize(
    ("name", "state", "reason", "words", "code", "attempt"),
    [
        ("ok", JobState.SUCCEEDED, Reason.NONE, "", 0, 1),
        ("running", JobState.RUNNING, Reason.NONE, "on rig-node", None, 1),
        ("exit3", JobState.FAILED, Reason.EXIT_CODE, "on rig-node ended with 3: ValueError: bad input", 3, 1),
        ("killed2", JobState.FAILED, Reason.SIGNAL, "on rig-node ended with 137 (SIGKILL)", 137, 1),
        ("oom", JobState.FAILED, Reason.OUT_OF_MEMORY, "more memory than its limit; ask for more", 137, 1),
        ("deadline", JobState.FAILED, Reason.TIMEOUT, "ask for more with active_deadline", None, 0),
        (
            "nocommand",
            JobState.FAILED,
            Reason.EXIT_CODE,
            'its container could not be started: exec: "/no/such": stat /no/such: no such file',
            128,
            1,
        ),
        # pod 0 was killed for it, eight seconds later
        ("pair", JobState.FAILED, Reason.EXIT_CODE, "pod pair-1-sd7l2 on rig-node ended with 7: boom", 7, 1),
        ("resume", JobState.PENDING, Reason.BACKOFF, "attempt 2 was preempted on rig-node", None, 2),
        ("resumed out", JobState.FAILED, Reason.PREEMPTED, "it has saved its state to be resumed", 75, 3),
        ("suspended", JobState.PENDING, Reason.SUSPENDED, "somebody has suspended it; `nemorun", None, 0),
        ("noimage", JobState.PENDING, Reason.IMAGE, "registry.invalid/nemo:1: Head ", None, 0),
        ("noimage, between two tries", JobState.PENDING, Reason.IMAGE, ": no such host", None, 0),
        ("neverpull", JobState.PENDING, Reason.IMAGE, "nemo/none:1 is not on the node", None, 0),
        ("badimage", JobState.PENDING, Reason.IMAGE, "nemo:1: repository name must be lowercase", None, 0),
        ("nosecret", JobState.PENDING, Reason.NEVER, 'secret "none" not found', None, 0),
        ("nopvc", JobState.PENDING, Reason.NEVER, 'claim "training-data" not found', None, 0),
        ("noconfigmap2", JobState.PENDING, Reason.NEVER, 'configmap "none" not found', None, 0),
        ("nonode", JobState.PENDING, Reason.RESOURCES, "0/129 nodes are available: 129 node(s)", None, 0),
        (
            "half",
            JobState.PENDING,
            Reason.RESOURCES,
            "1 of 2 pods run; 1 of 2 pods waits: 0/129 nodes are available: 1 Insufficient nvidia.com/gpu",
            None,
            1,
        ),
        ("pending-gang", JobState.PENDING, Reason.NONE, "starting on dgx-018, dgx-046, dgx-091", None, 0),
        (
            "quota",
            JobState.PENDING,
            Reason.QUOTA,
            "quota 'gpus' allows requests.nvidia.com/gpu=4; requests.nvidia.com/gpu=0 is in use",
            None,
            0,
        ),
    ],
)
def test_recorded(
    name: str, state: JobState, reason: Reason, words: str, code: int | None, attempt: int
) -> None:
    now = status(seen(name))
    assert (now.state, now.reason, now.exit_code, now.attempt) == (state, reason, code, attempt)
    assert words in now.message


def test_times_are_of_the_containers_and_of_the_end() -> None:
    now = status(seen("ok"))
    assert now.started_at and now.ended_at and 0 < now.ended_at - now.started_at < 60


# --- what the rig cannot do


def pod_of(name: str = "exit3") -> Object:
    pod: Object = copy.deepcopy(RECORDED[name]["pods"][0])
    return pod


def judged(pod: Object, **fields: Any) -> JobStatus:
    return status(seen("exit3", pods=[pod], attempts=brought_up_to_date([], [pod]), **fields))


def disrupted(reason: str) -> Object:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": f"{reason} it is"}


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        (
            {"reason": "Evicted", "message": "The node was low on resource: memory."},
            Reason.EVICTED,
            "on rig-node: The node was low on resource: memory.",
        ),
        ({"conditions": [disrupted("PreemptionByScheduler")]}, Reason.PREEMPTED, "pods of higher priority"),
        ({"conditions": [disrupted("EvictionByEvictionAPI")]}, Reason.EVICTED, "its node is being emptied"),
        ({"conditions": [disrupted("DeletionByPodGC")]}, Reason.NODE_FAILURE, "its node is gone"),
        ({"conditions": [disrupted("SomethingNew")]}, Reason.EVICTED, "SomethingNew it is"),
        ({"reason": "NodeLost", "message": "Node dgx-1 is lost"}, Reason.NODE_FAILURE, "Node dgx-1 is lost"),
        ({"reason": "Terminated", "message": "node shutdown"}, Reason.NODE_FAILURE, "node shutdown"),
        (
            {"reason": "UnexpectedAdmissionError", "message": "no GPU is healthy", "containerStatuses": []},
            Reason.NODE_FAILURE,
            "no GPU is healthy",
        ),
    ],
)
def test_pods_that_were_ended_by_others(change: Object, reason: Reason, words: str) -> None:
    pod = pod_of()
    pod["status"] |= change
    now = judged(pod)
    assert (now.state, now.reason) == (JobState.FAILED, reason)
    assert words in now.message


def with_report(**said: Any) -> Object:
    pod = pod_of()
    terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    terminated |= {"message": json.dumps(said), "exitCode": 1}
    return pod


def test_the_supervisors_report_names_the_rank() -> None:
    now = judged(with_report(attempt=2, rank=5, exit_code=1, error="ValueError: bad"))
    assert now.message == "rank 5 on rig-node: ValueError: bad"
    assert now.attempt == 2
    assert judged(with_report(attempt=1, rank=5, exit_code=4, error=None)).message.endswith("ended with 4")


def test_an_operators_own_code_for_resume_is_a_preemption() -> None:
    pod = with_report(attempt=1, rank=0, exit_code=75, error=None)
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] = 138
    assert judged(pod).reason is Reason.PREEMPTED


def test_the_last_attempts_first_failure_is_the_one_that_is_told() -> None:
    def end(number: int, index: int, at: float, **fields: Any) -> Attempt:
        facts = {"reason": Reason.EXIT_CODE, "code": 1, "over": True, "node": f"n{index}", **fields}
        return Attempt(index, number, f"p{index}-{number}", f"u{index}{number}", ended_at=at, **facts)

    attempts = [
        end(1, 0, 100.0, code=5),
        end(2, 0, 203.0),
        end(1, 1, 201.0, code=9),
        end(1, 2, 200.5, code=143, reason=Reason.SIGNAL),
        end(1, 3, 204.0, code=75, reason=Reason.PREEMPTED),
    ]
    now = status(seen("exit3", attempts=attempts))
    assert (now.exit_code, now.message) == (9, "pod p1-1 on n1 ended with 9")


def test_kueue_says_why_it_waits() -> None:
    case = seen("suspended")
    assert case.workload
    case.workload["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "research"
    event = {
        "involvedObject": {"kind": "Workload", "name": "job-suspended-1a2b3"},
        "source": {"component": "kueue-admission"},
        "reason": "Pending",
        "message": "couldn't assign flavors to pod set main: insufficient quota for nvidia.com/gpu",
        "lastTimestamp": "2026-11-23T21:54:49Z",
    }
    now = status(seen("suspended", workload=case.workload, events=[event]))
    assert (now.state, now.reason) == (JobState.PENDING, Reason.RESOURCES)
    assert now.message.startswith("in queue 'research' of Kueue: couldn't assign flavors")


@pytest.mark.parametrize(
    ("fields", "state", "words"),
    [
        ({"cancelled": True}, JobState.CANCELLED, ""),
        ({"seen_at": 2e9 - 5}, JobState.CANCELLED, "job/ml/ok was deleted, and not by nemorun"),
        ({"seen_at": 2e9 - 500}, JobState.UNKNOWN, "how it ended is not known"),
        ({}, JobState.UNKNOWN, "the cluster has no job/ml/ok any more"),
        ({"handle": None, "submitting": True, "attempts": []}, JobState.PENDING, "being submitted"),
        ({"handle": None, "attempts": []}, JobState.FAILED, "never reached the cluster"),
        ({"handle": None}, JobState.UNKNOWN, "how it ended is not known"),
    ],
)
def test_what_is_gone_never_counts_as_succeeded(fields: Any, state: JobState, words: str) -> None:
    """The pods had ended well when they were last seen."""
    now = status(seen("ok", workload=None, **fields))
    assert now.state is state
    assert words in now.message


def test_what_is_being_cancelled_is_not_failed() -> None:
    assert status(seen("exit3", cancelled=True)).state is JobState.CANCELLED
    running = status(seen("running", cancelled=True))
    assert (running.state, running.message) == (JobState.RUNNING, "it is being deleted")


def condition(kind: str, **fields: str) -> Object:
    return {"type": kind, "status": "True", "lastTransitionTime": "2026-11-23T21:55:00Z", **fields}


PYTORCHJOB: Object = {
    "kind": "PyTorchJob",
    "spec": {"pytorchReplicaSpecs": {"Master": {"replicas": 1}, "Worker": {"replicas": 3}}, "runPolicy": {}},
}
JOBSET: Object = {
    "kind": "JobSet",
    "spec": {"replicatedJobs": [{"replicas": 1, "template": {"spec": {"parallelism": 4}}}]},
}
TRAINJOB: Object = {"kind": "TrainJob", "spec": {"runtimeRef": {"name": "torch"}, "trainer": {"numNodes": 4}}}


@pytest.mark.parametrize(
    ("workload", "succeeded"), [(PYTORCHJOB, "Succeeded"), (JOBSET, "Completed"), (TRAINJOB, "Complete")]
)
def test_other_workloads(workload: Object, succeeded: str) -> None:
    """Four nodes, of which three run."""
    made = {**workload, "metadata": {"name": "train"}, "status": {}}
    pods = []
    for number in range(3):
        pod = pod_of("running")
        pod["metadata"]["uid"] = str(number)
        pods.append(pod)
    case = {"workload": made, "pods": pods, "attempts": brought_up_to_date([], pods), "events": []}
    now = status(seen("running", **case))
    assert (now.state, now.message) == (JobState.PENDING, "3 of 4 pods run")
    made["status"] = {"conditions": [condition(succeeded)]}
    assert status(seen("running", **case)).state is JobState.SUCCEEDED
    made["status"] = {
        "conditions": [condition("Failed", reason="x", message="it was longer than its deadline")]
    }
    assert status(seen("running", **case)).reason is Reason.TIMEOUT
    made["status"] = {}
    made["spec"] = {**made["spec"], "suspend": True, "runPolicy": {"suspend": True}}
    assert status(seen("running", **case)).reason is Reason.SUSPENDED


@pytest.mark.parametrize(
    ("labels", "index"),
    [
        ({"batch.kubernetes.io/job-completion-index": "3"}, 3),
        ({"training.kubeflow.org/replica-type": "master", "training.kubeflow.org/replica-index": "0"}, 0),
        ({"training.kubeflow.org/replica-type": "worker", "training.kubeflow.org/replica-index": "2"}, 3),
        ({}, 0),
    ],
)
def test_which_node_a_pod_is(labels: dict[str, str], index: int) -> None:
    assert index_of({"metadata": {"labels": labels}}) == index


# --- attempts


def test_attempts_outlive_their_pods(tmp_path: Path) -> None:
    first, second, third = sorted(
        RECORDED["resumed out"]["pods"], key=lambda pod: pod["metadata"]["creationTimestamp"]
    )
    assert [one.number for one in remember(str(tmp_path), [first])] == [1]
    assert [one.number for one in remember(str(tmp_path), [second])] == [1, 2]
    known = remember(str(tmp_path), [second, third])
    assert [(one.number, one.code, one.reason) for one in known] == [
        (number, 75, Reason.PREEMPTED) for number in (1, 2, 3)
    ]
    assert read(str(tmp_path)) == known == remember(str(tmp_path), [])


def test_a_pod_that_vanished_while_it_ran_was_evicted(tmp_path: Path) -> None:
    known = remember(str(tmp_path), RECORDED["running"]["pods"])
    (gone,) = remember(str(tmp_path), [])
    assert gone.over and gone.reason is Reason.EVICTED
    (stopped,) = brought_up_to_date(known, [], suspended=True)
    assert stopped.over and stopped.reason is Reason.SUSPENDED
    now = status(seen("running", pods=[], attempts=[gone]))
    assert (now.state, now.reason, now.message) == (
        JobState.PENDING,
        Reason.BACKOFF,
        "attempt 1 was evicted on rig-node",
    )


def test_each_start_of_a_container_is_an_attempt() -> None:
    pod = pod_of("running")
    (state,) = pod["status"]["containerStatuses"]
    state |= {"restartCount": 1, "lastState": {"terminated": {"exitCode": 9, "reason": "Error"}}}
    first, second = brought_up_to_date([], [pod])
    assert (first.number, first.code, first.replaced) == (1, 9, True)
    assert (second.number, second.over, second.replaced) == (2, False, False)
    assert status(seen("running", pods=[pod], attempts=[first, second])).state is JobState.RUNNING


def test_a_pod_that_waits_is_no_attempt_yet() -> None:
    assert brought_up_to_date([], RECORDED["noimage"]["pods"] + RECORDED["nonode"]["pods"]) == []


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1970-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00Z", None),
        (None, None),
        ("2001-09-09T01:46:40Z", 1e9),
        ("2001-09-09T03:46:40+02:00", 1e9),
        ("2001-09-09T01:46:40.500000Z", 1e9 + 0.5),
    ],
)
def test_timestamps(text: str | None, at: float | None) -> None:
    assert timestamp(text) == at
