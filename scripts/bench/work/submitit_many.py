"""Twenty trivial tasks through submitit's local executor."""

import submitit
from work import trivial

if __name__ == "__main__":
    executor = submitit.LocalExecutor("logs")
    jobs = [executor.submit(trivial) for _ in range(20)]
    [job.result() for job in jobs]
