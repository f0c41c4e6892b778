"""This machine: commands, files, packages, and whether it can hold the rig at all."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rig.layout import STATE

PACKAGES = [
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurmdbd",
    "munge",
    "mariadb-server-core",
    "mariadb-client-core",
    "openssh-server",
    "openssh-client",
    "rsync",
    "iproute2",
    "util-linux",
    "python3-venv",
    "libpmix2",
]
PROBE = """\
mount -t tmpfs rig /tmp || exit
command -v ip > /dev/null || exit 0             # not installed yet
ip link add probe0 type veth peer name probe1 || exit
ip link add probe2 type bridge && ip tuntap add dev probe3 mode tun
"""


def unfit(reason):
    """This machine cannot run the rig: one line, and an exit code of its own."""
    print(f"slurm-rig: {reason}", file=sys.stderr)
    sys.exit(2)


def run(*command, **kw):
    """Run a command; on failure show its output and stop."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kw)
    if done.returncode:
        sys.exit(f"slurm-rig: {' '.join(command)}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def write(path, text, mode=0o644, owner=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    if owner:
        shutil.chown(path, owner, owner)


def wait_for(what, test, seconds=60):
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            sys.exit(f"slurm-rig: timed out waiting for {what}; see {STATE}/log")
        time.sleep(0.05)


def check_machine():
    """Stop, with a reason, where namespaces or virtual network devices cannot be had."""
    if not (shutil.which("dpkg-query") and shutil.which("apt-get")):
        unfit("this is not Debian: there is no dpkg-query or no apt-get")
    if not Path("/dev/net/tun").exists():
        unfit("/dev/net/tun is missing: no TUN devices here")
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "sh", "-c", PROBE],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        unfit("no network namespaces or no virtual network devices here: " + " ".join(done.stdout.split()))


def install(packages):
    """Install those Debian packages that are missing; nothing is ever removed.  Returns whether any were."""
    known = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Status}\n", *packages], text=True, capture_output=True
    ).stdout.splitlines()
    missing = [p for p in packages if f"{p} install ok installed" not in known]
    if not missing:
        return False
    print("installing", *missing, flush=True)
    policy = Path("/usr/sbin/policy-rc.d")  # keep the packages' own daemons from starting
    ours = not policy.exists()
    if ours:
        write(policy, "#!/bin/sh\nexit 101\n", 0o755)
    try:
        kw = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdin": subprocess.DEVNULL}
        command = [
            "apt-get",
            "install",
            "-y",
            "-q",
            "--no-install-recommends",
            "--no-remove",
            "-o",
            "DPkg::Lock::Timeout=120",
            *missing,
        ]
        first = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kw)
        if first.returncode:  # no package lists yet, or old ones
            run("apt-get", "update", "-q", **kw)
            run(*command, **kw)
    finally:
        if ours:
            policy.unlink()
    return True


def enable_pmix():
    """Slurm's plugin opens libpmix.so, a name that Debian puts only into the -dev package."""
    for folder in Path("/usr/lib").glob("*/pmix2/lib"):
        if not (folder / "libpmix.so").exists():
            (folder / "libpmix.so").symlink_to("libpmix.so.2")
