"""Names, addresses and folders of the rig, and which of its hosts run."""

import json
from pathlib import Path

STATE = Path("/var/lib/slurm-rig")
CACHE = Path("/var/cache/slurm-rig")
CGROUPS = Path("/sys/fs/cgroup")  # cgroup v1 here, if there are folders for the controllers
NET = "slr-"  # prefix of the named network namespaces
LAN = {"ctl": "198.18.0.1", "bastion": "198.18.0.2", "login": "198.18.0.3"}
WAN = {"bastion": "198.19.0.2", "login": "198.19.0.3"}
USERS = {"alice": (3001, "research"), "bob": (3002, "product")}  # name: (uid, Slurm account)
KEY = STATE / "ssh/id_ed25519"
QOS, PARTITIONS = ("normal", "low", "high"), ("batch", "interactive")
GPUS = 8  # on each node


def node_names(count):
    return [f"node{i:03}" for i in range(1, count + 1)]


def node_ip(index):  # 0-based
    return f"198.18.{1 + index // 250}.{1 + index % 250}"


def pid_of(name):
    """The outside process id of a running host's init (or of the WAN link), None when it is not running."""
    try:
        pid = int((STATE / f"run/{name}.pid").read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    ours = str(STATE / "init.sh").encode() in words or b"carry-wan" in words
    return pid if ours and name.encode() in words and state != "Z" else None


def saved():
    """What `up` has written down: hosts, addresses, settings."""
    path = STATE / "rig.json"
    return json.loads(path.read_text()) if path.exists() else {"hosts": {}}


def hosts():
    """Host names and their roles."""
    return saved()["hosts"]


def is_up():
    """Is there a rig on this machine, even one of which some hosts do not run?"""
    return bool(hosts()) and Path(f"/run/netns/{NET}switch").exists()
