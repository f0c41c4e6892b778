"""A cluster as the Slurm executor sees it: one connection for all, and commands that survive its loss."""

from __future__ import annotations

import functools
import re
import shlex
import threading
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.errors import SubmitError
from nemorun.remote import connect
from nemorun.remote.connection import Completed, Connection, Timeouts
from nemorun.remote.errors import AuthenticationFailed, ConnectError, ConnectionLost, HostKeyError
from nemorun.remote.paths import quote_path

if TYPE_CHECKING:
    from nemorun.executors.slurm.executor import SlurmExecutor

#: A host that is silent for longer counts as lost: all that is asked here can be asked again.
TIMEOUTS = Timeouts(dead_after=20)
#: Seconds for which a lost connection is tried again.
PATIENCE = 60.0

_clusters: dict[Hashable, Cluster] = {}
_connections: dict[Hashable, Connection] = {}
_making = threading.Lock()


def cluster_of(executor: SlurmExecutor) -> Cluster:
    """The executor's cluster: one object for each place, one connection for each host of this process."""
    with _making:
        place = executor.place()
        if place not in _clusters:
            host = (executor.tunnel, executor.transport, executor.ssh_config)
            if host not in _connections:
                _connections[host] = _connect(*host)
            _clusters[place] = Cluster(_connections[host], executor.job_dir)
        return _clusters[place]


def _connect(tunnel: str, transport: str | None, ssh_config: str | None) -> Connection:
    if tunnel == "local":
        return connect(transport="local", timeouts=TIMEOUTS)
    config = Path(ssh_config).expanduser() if ssh_config else None
    return connect(tunnel, transport=transport, config=config, timeouts=TIMEOUTS)


@functools.cache
def script(name: str) -> str:
    """The text of a shell script that stands beside this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


class Cluster:
    """Commands on one cluster, in the folder `job_dir` there."""

    def __init__(self, connection: Connection, job_dir: str) -> None:
        self.connection = connection
        self.name = connection.name
        self.job_dir = job_dir

    def command(self, name: str, **variables: str | int) -> str:
        """A script that stands beside this file, ready to run, with these variables set.

        It also finds JOB_DIR, Slurm's commands on PATH, and none of Slurm's variables (see `prelude.sh`).
        """
        needed = " ".join(re.findall(r"\$\{?(\w+)", self.job_dir))
        values = {"NEEDED": needed, "JOB_DIR_WORD": quote_path(self.job_dir), **variables}
        return "\n".join([*_assigned(values), script("prelude.sh"), script("make_job_dir.sh"), script(name)])

    def plain_command(self, name: str, **variables: str | int) -> str:
        """The same, in an environment that holds no more than what jobs may inherit (see `plain.sh`)."""
        then = [*_assigned(variables), "JOB_DIR=$1", script("make_job_dir.sh"), script(name)]
        return self.command("plain.sh", THEN="\n".join(then))

    def run(self, command: str, stdin: bytes = b"", *, retry: bool) -> Completed:
        """Run a command. Where the connection is lost, connect again, and run it again if that is harmless.

        `retry`: it may be given twice (it only reads, or finds what it did before). Raises RemoteError, and
        SubmitError where the connection did not come back.
        """
        give_up, pause = time.monotonic() + PATIENCE, 0.5
        lost = False
        while True:
            try:
                return self.connection.run(command, stdin)
            except ConnectionLost as error:
                if error.may_have_run and not retry:
                    raise
                problem: ConnectError | ConnectionLost = error
            except (HostKeyError, AuthenticationFailed):
                raise
            except ConnectError as error:
                if not lost:  # it was never there: a wrong name, say
                    raise
                problem = error
            lost = True
            if time.monotonic() + pause > give_up:
                raise SubmitError(
                    f"{self.name}: the connection was lost and did not come back within {PATIENCE:.0f} s: "
                    f"{problem}"
                ) from problem
            time.sleep(pause)
            pause = min(2 * pause, 8)


def _assigned(variables: Mapping[str, str | int]) -> list[str]:
    return [f"{key}={shlex.quote(str(value))}" for key, value in variables.items()]
