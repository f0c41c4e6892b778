"""The hosts' networks: bridges and cables in namespaces of their own, and what undoes them."""

import json
from pathlib import Path

from rig.layout import NET, STATE, WAN
from rig.machine import run, write

NEIGHBOURS, MANY = "/proc/sys/net/ipv4/neigh/default", 1 << 16


def ip_batch(lines, *where):
    run("ip", *where, "-batch", "-", input="\n".join(lines) + "\n")


def make_network(addresses):
    """Two bridges in a namespace of their own (LAN and WAN), a veth pair to each host, the WAN's TUN pair."""
    ip_batch([f"netns add {NET}{n}" for n in ["switch", *addresses]])
    ip_batch(
        [
            f"link add eth0 netns {NET}{n} mtu 9000 type veth peer name l-{n} mtu 9000 netns {NET}switch"
            for n in addresses
        ]
        + [
            f"link add wan0 netns {NET}{n} mtu 9000 type veth peer name w-{n} mtu 9000 netns {NET}switch"
            for n in WAN
        ]
        + [
            "tuntap add dev slr-wan mode tun",
            "link set slr-wan mtu 9000 up",
            "addr add 198.19.255.1 peer 198.19.255.2 dev slr-wan",
            "route add 198.19.0.0/24 dev slr-wan",
        ]
    )
    ip_batch(
        [
            "link set lo up",
            "link add lan type bridge",
            "link set lan up",
            "link add wan type bridge",
            "link set wan up",
            "addr add 198.19.0.1/24 dev wan",
        ]
        + [f"link set l-{n} master lan up" for n in addresses]
        + [f"link set w-{n} master wan up" for n in WAN]
        + [
            "tuntap add dev tun0 mode tun",
            "link set tun0 mtu 9000 up",
            "addr add 198.19.255.2 peer 198.19.255.1 dev tun0",
        ],
        "-n",
        NET + "switch",
    )
    # The neighbour table is one for all namespaces: room for 250 hosts.  `down` puts the old thresholds back.
    before = {str(path): int(path.read_text()) for path in Path(NEIGHBOURS).glob("gc_thresh?")}
    write(STATE / "gc_thresh.json", json.dumps(before))
    for path, value in before.items():
        Path(path).write_text(str(max(value, MANY)))
    run("ip", "netns", "exec", NET + "switch", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    for name, address in addresses.items():
        lines = ["link set lo up", f"addr add {address}/16 dev eth0", "link set eth0 up"]
        # Slurm writes a length and then a body: without quick acknowledgements each message waits 40 ms.
        lines += [
            f"route replace 198.18.0.0/16 dev eth0 src {address} quickack 1",
            f"route replace local {address} dev eth0 table local src {address} quickack 1",
            "route replace local 127.0.0.0/8 dev lo table local src 127.0.0.1 quickack 1",
        ]
        if name in WAN:
            lines += [
                f"addr add {WAN[name]}/24 dev wan0",
                "link set wan0 up",
                "route add default via 198.19.0.1",
            ]
        ip_batch(lines, "-n", NET + name)
