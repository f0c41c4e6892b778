"""One trivial task through submitit's local executor."""

import submitit
from work import trivial

if __name__ == "__main__":
    submitit.LocalExecutor("logs").submit(trivial).result()
