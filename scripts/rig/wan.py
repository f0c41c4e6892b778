"""The link from this machine to the login hosts, with delay, loss and cuts, between two TUN devices."""

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

from rig.layout import NET, STATE, pid_of
from rig.machine import write


def open_tun(name):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(
        fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001)
    )  # TUNSETIFF, IFF_TUN | IFF_NO_PI
    return fd


def start_wan():
    write(STATE / "wan.json", json.dumps({"rtt": 0, "jitter": 0, "loss": 0, "cut": False}))
    log = (STATE / "log/wan.log").open("a")
    process = subprocess.Popen(
        [sys.executable, sys.argv[0], "carry-wan", "wan"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    write(STATE / "run/wan.pid", f"{process.pid}\n")


def carry_wan(args):
    """Carry packets between the two TUN devices, late or not at all (not every kernel has sch_netem)."""
    near = open_tun("slr-wan")
    with Path(f"/run/netns/{NET}switch").open() as space:
        if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), 0x40000000):  # CLONE_NEWNET
            sys.exit(f"setns: {os.strerror(ctypes.get_errno())}")
    far = open_tun("tun0")
    link = {}

    def reload(*_):
        link.update(json.loads((STATE / "wan.json").read_text()))

    reload()
    signal.signal(signal.SIGHUP, reload)
    other, last_due, queue, serial = {near: far, far: near}, {near: 0.0, far: 0.0}, [], 0
    while True:
        wait = max(0.0, queue[0][0] - time.monotonic()) if queue else None
        for fd in select.select([near, far], [], [], wait)[0]:
            packet = os.read(fd, 65536)
            if link["cut"] or random.random() * 100 < link["loss"]:
                continue
            delay = (link["rtt"] / 2 + random.uniform(0, link["jitter"])) / 1000
            last_due[fd] = max(last_due[fd], time.monotonic() + delay)  # packets stay in order
            serial += 1
            heapq.heappush(queue, (last_due[fd], serial, other[fd], packet))
        while queue and queue[0][0] <= time.monotonic():
            _, _, fd, packet = heapq.heappop(queue)
            with contextlib.suppress(OSError):  # the device is gone or full: a lost packet
                os.write(fd, packet)


def wan(args):
    if not pid_of("wan"):
        sys.exit("slurm-rig: not up")
    path = STATE / "wan.json"
    link = json.loads(path.read_text())
    link.update({k: v for k in ("rtt", "jitter", "loss", "cut") if (v := getattr(args, k)) is not None})
    write(path, json.dumps(link))
    os.kill(pid_of("wan"), signal.SIGHUP)
    print(link)
