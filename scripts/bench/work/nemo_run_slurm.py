"""Submits $TASKS trivial tasks to the rig ($RIG: its facts) with NeMo-Run; prints the seconds it took."""

import json
import os
import time

import nemo_run as run

facts = json.loads(os.environ["RIG"])


def main() -> None:
    start = time.perf_counter()
    tunnel = run.SSHTunnel(
        user="alice", host=facts["login"], identity=facts["key"], job_dir="/home/alice/nemo_run"
    )
    executor = run.SlurmExecutor(
        account="research",
        partition="batch",
        nodes=1,
        time="00:05:00",
        tunnel=tunnel,
        packager=run.Packager(),
        additional_parameters={"begin": "now+1hour"},
    )
    with run.Experiment("bench", executor=executor) as experiment:
        for number in range(int(os.environ["TASKS"])):
            experiment.add(run.Script(inline="true"), name=f"task{number}")
        experiment.run(detach=True, sequential=False)
    print("seconds", time.perf_counter() - start)


if __name__ == "__main__":
    main()
