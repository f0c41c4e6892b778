"""NeMo-Run's dry run."""

import nemo_run as run
from work import trivial

if __name__ == "__main__":
    run.run(run.Partial(trivial), executor=run.LocalExecutor(), dryrun=True)
