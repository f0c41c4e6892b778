"""One trivial task through NeMo-Run's local executor."""

import nemo_run as run
from work import trivial

if __name__ == "__main__":
    run.run(run.Partial(trivial), executor=run.LocalExecutor())
