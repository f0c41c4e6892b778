"""Twenty trivial tasks in one experiment of NeMo-Run."""

import nemo_run as run
from work import trivial

if __name__ == "__main__":
    with run.Experiment("many") as experiment:
        for i in range(20):
            experiment.add(run.Partial(trivial), executor=run.LocalExecutor(), name=f"task{i}")
        experiment.run(sequential=False, detach=False)
