"""Starts and stops simulated hosts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from rig.layout import CACHE, NET, STATE, hosts, pid_of
from rig.machine import wait_for


def enter(name, *command):
    """The command line that runs a command on a simulated host."""
    pid = pid_of(name)
    if not pid:
        sys.exit(f"slurm-rig: host {name} is not running")
    # Debian's root has the sbin folders on PATH; who calls us may not.
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    into = ["nsenter", "-t", str(pid), "-m", "-u", "-n", "-p", "--wdns=/", "--"]
    return [*into, "/usr/bin/env", path, *command]


def kill_and_wait(names):
    pids = {name: pid for name in names if (pid := pid_of(name))}
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)  # process 1 of a namespace takes all the others with it
    wait_for("hosts to stop", lambda: not any(pid_of(name) for name in pids), 20)


def boot(names):
    """Start simulated hosts and wait until they are up."""
    started = {}
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "RIG_STATE": str(STATE),
        "RIG_CACHE": str(CACHE),
    }
    for name in names:
        with (STATE / f"log/init-{name}.log").open("a") as log:
            started[name] = subprocess.Popen(
                [
                    "nsenter",
                    f"--net=/run/netns/{NET}{name}",
                    "unshare",
                    "--uts",
                    "--mount",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "bash",
                    str(STATE / "init.sh"),
                    name,
                    hosts()[name],
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def booted(name):
        if started[name].poll() is not None:
            sys.exit(f"slurm-rig: {name} failed to boot\n" + (STATE / f"log/init-{name}.log").read_text())
        pid = pid_of(name)
        return pid and Path(f"/proc/{pid}/root/run/booted").exists()

    wait_for("hosts to boot", lambda: all(booted(name) for name in started), 120)
