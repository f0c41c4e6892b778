"""Twenty independent trivial tasks in one experiment."""

from work import trivial

import nemorun as run

if __name__ == "__main__":
    experiment = run.Experiment("many", executor=run.LocalExecutor())
    for i in range(20):
        experiment.add(run.Partial(trivial), name=f"task{i}")
    experiment.run()
