"""Submissions whose manifests are kept as golden files: together they use every field of the executor."""

from __future__ import annotations

from typing import Any

from nemorun.executors.kubernetes import KubernetesExecutor
from nemorun.executors.kubernetes.manifests import KubernetesRendered, render
from nemorun.job import JobSpec, Resources

IMAGE = "nvcr.io/nvidia/nemo:24.05"
#: In place of the launching machine's interpreter.
PYTHON = "/launcher/bin/python3.11"
FOLDER = "/home/ann/.nemorun/experiments/llama-abcd2345"
CODE = f"/home/ann/.nemorun/code/{'0123456789abcdef' * 4}.tar.gz"
#: A value that must arrive as it is.
AWKWARD = 'it\'s "$HOME" $(POD_IP) $$ 100%, ünïcode: yes\nsecond line'

Pairs = list[tuple[KubernetesExecutor, JobSpec]]


def executor(**fields: Any) -> KubernetesExecutor:
    made = KubernetesExecutor(**{"image": IMAGE, **fields})
    made.validate()
    return made


def job(
    name: str = "train", nodes: int = 1, ranks: int = 1, gpus: int = 0, *, frozen: bool = True, **fields: Any
) -> JobSpec:
    run_dir = f"{FOLDER}/tasks/{name}"
    fields = {"task": None if "command" in fields else f"{run_dir}/task.yaml", **fields}
    if frozen:
        fields = {"code": CODE, "code_root": "/work/llama", "cwd": "/work/llama", **fields}
    return JobSpec(name, f"abcd2345.{name}", run_dir, Resources(nodes, ranks, gpus), **fields)


def rendered(name: str) -> KubernetesRendered:
    return render(SUBMISSIONS[name])


SUBMISSIONS: dict[str, Pairs] = {
    "one-pod": [(executor(), job())],
    "several-pods": [
        (
            executor(namespace="nemo-training", num_gpus=8, nodes=4, retries=2),
            job(nodes=4, ranks=8, gpus=8, retries=2, resumable=True),
        )
    ],
    "resources": [
        (
            executor(
                nodes=2,
                ntasks_per_node=4,
                num_gpus=4,
                gpu_resource="nvidia.com/mig-3g.20gb",
                cpus="31.5",
                memory="900Gi",
                shm_size="64Gi",
                extended_resources={"rdma/hca_shared_devices_a": 1, "hugepages-2Mi": "1Gi"},
            ),
            job(nodes=2, ranks=4, gpus=4),
        )
    ],
    "environment": [
        (
            executor(
                env_vars={"NCCL_DEBUG": "INFO", "AWKWARD": AWKWARD},
                env_from_secrets=["registry", "wandb"],
                image_pull_policy="Always",
                image_pull_secrets=["ngc"],
                shm_size="0",
            ),
            job(
                env={
                    "NCCL_DEBUG": "INFO",
                    "AWKWARD": AWKWARD,
                    "PYTHONPATH": f"{CODE.removesuffix('.tar.gz')}/src:/work/other",
                },
                secrets=("API_KEY", "HF_TOKEN"),
                cwd="/work/llama/configs",
            ),
        )
    ],
    "volumes": [
        (
            executor(
                volumes=[
                    "pvc:training-data:/data:ro",
                    "pvc:training-results:/results",
                    "hostpath:/lustre/venv:/venv:ro",
                    "emptydir:/scratch",
                    "emptydir:/more/scratch:100Gi",
                    "configmap:hosts:/etc/hosts.d",
                    "secret:certificates:/etc/certificates",
                    "nfs:nas.example.com:/export/home:/home",
                    "nfs:[fd00::1]:/export:/nas:ro",
                ],
                run_dir="/results/runs",
                code="pvc",
                workdir="/scratch",
            ),
            job(),
        )
    ],
    "placement": [
        (
            executor(
                node_selector={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
                tolerations=[
                    "nvidia.com/gpu:NoSchedule",
                    "team=llm:NoExecute",
                    "spot",
                    {"operator": "Exists", "effect": "PreferNoSchedule"},
                ],
                affinity={
                    "podAntiAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": [
                            {
                                "topologyKey": "kubernetes.io/hostname",
                                "labelSelector": {"matchLabels": {"nemorun/task": "train"}},
                            }
                        ]
                    }
                },
                priority_class="research",
                service_account="trainer",
                host_network=True,
                labels={"team": "llm"},
                annotations={"example.com/owner": "ann@example.com"},
                security_context={
                    "runAsUser": 1000,
                    "runAsNonRoot": True,
                    "fsGroup": 1000,
                    "capabilities": {"add": ["IPC_LOCK"]},
                    "allowPrivilegeEscalation": False,
                },
            ),
            job(nodes=2, gpus=8),
        )
    ],
    "limits": [
        (
            executor(
                backoff_limit=6,
                active_deadline=86400,
                ttl_after_finished=3600,
                grace_period=300,
                start_timeout=60,
            ),
            job(nodes=2),
        )
    ],
    "queue": [
        (
            executor(
                queue="research",
                topology="required:network.topology.nvidia.com/block,slice:network.topology.nvidia.com/accelerator:2",
            ),
            job(nodes=4, gpus=8),
        ),
        (
            executor(queue="research", topology="unconstrained"),
            job("after", dependencies=("train",)),
        ),
    ],
    "dependencies": [
        (executor(), job("Prepare_Data")),
        (executor(), job("train", dependencies=("Prepare_Data",))),
    ],
    "starter": [
        (executor(namespace="nemo-training"), job("prepare")),
        (
            executor(
                namespace="nemo-training",
                num_gpus=8,
                starter_account="nemorun-starter",
                volumes=["pvc:training-data:/data"],
                tolerations=["nvidia.com/gpu:NoSchedule"],
            ),
            job("train", gpus=8, dependencies=("prepare",), env={"A": "1"}),
        ),
    ],
    "overrides": [
        (
            executor(
                container_name="train",
                pod_overrides={
                    "metadata": {"annotations": {"example.com/injected": "no"}},
                    "spec": {
                        "enableServiceLinks": None,
                        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["nas"]}],
                        "containers": [
                            {
                                "name": "train",
                                "env": [
                                    {
                                        "name": "POD_IP",
                                        "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}},
                                    }
                                ],
                                "volumeMounts": [{"mountPath": "/dev/shm", "$patch": "delete"}],
                            },
                            {"name": "sidecar", "image": "example.com/exporter:1"},
                        ],
                        "volumes": [{"name": "shm", "$patch": "delete"}],
                    },
                },
            ),
            job(),
        )
    ],
    "command": [
        (
            executor(code="configmap"),
            job(command=(PYTHON, "/work/llama/scripts/train.py", "--name", AWKWARD), ranks=2),
        )
    ],
    "code-in-the-image": [(executor(code="image", workdir="/opt/llama"), job(nodes=2, frozen=True))],
    "bare-command": [
        (
            executor(code="image", volumes=["pvc:training-data:/data"], workdir="/opt/llama"),
            job(command=(PYTHON, "train.py", "--rate", "$(RATE)")),
        )
    ],
    "pytorchjob": [
        (
            executor(kind="pytorchjob", active_deadline=86400, ttl_after_finished=3600, env_vars={"A": "1"}),
            job(nodes=4, ranks=8, gpus=8, resumable=True, env={"A": "1"}),
        )
    ],
    "pytorchjob-one-node": [(executor(kind="pytorchjob", queue="research"), job(gpus=8, retries=3))],
    "jobset": [
        (
            executor(
                kind="jobset",
                queue="research",
                active_deadline=86400,
                ttl_after_finished=3600,
                annotations={"alpha.jobset.sigs.k8s.io/exclusive-topology": "rack"},
            ),
            job(nodes=4, ranks=8, gpus=8, retries=1),
        )
    ],
    "trainjob": [
        (
            executor(
                kind="trainjob",
                runtime="torch-h100",
                queue="research",
                topology="preferred:rack",
                num_gpus=8,
                volumes=["pvc:training-data:/data"],
                service_account="trainer",
                workdir="/opt/llama",
                code="image",
            ),
            job(nodes=2, ranks=8, gpus=8, secrets=("API_KEY",)),
        )
    ],
    "trainjob-2.0": [
        (
            executor(kind="trainjob", runtime_patch="podSpecOverrides", node_selector={"zone": "a"}, cpus=4),
            job(nodes=2),
        )
    ],
    "trainjob-2.2": [
        (
            executor(
                kind="trainjob",
                runtime_patch="runtimePatches",
                active_deadline=3600,
                security_context={"runAsUser": 1000, "privileged": False},
            ),
            job(nodes=2),
        )
    ],
}
