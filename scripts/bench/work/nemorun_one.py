"""One trivial task through nemorun's local executor."""

from work import trivial

import nemorun as run

if __name__ == "__main__":
    run.run(run.Partial(trivial), executor=run.LocalExecutor())
