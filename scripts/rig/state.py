"""All files of a rig that is not there yet."""

import os
import shutil
import stat
from pathlib import Path

from rig import slurm, ssh
from rig.layout import CACHE, GPUS, LAN, STATE, USERS, node_ip, node_names
from rig.machine import run, write


def write_state(settings):
    """All the files of a rig that is not there yet.  Returns the hosts' addresses and their roles."""
    nodes, flat = node_names(settings["nodes"]), settings["flat"]
    for directory in ("run", "log", "etc/slurm", "ctl/slurmctld", "home", "lustre/venv", "ssh"):
        (STATE / directory).mkdir(parents=True)
    (CACHE / "venv").mkdir(parents=True, exist_ok=True)  # what takes long to make outlives `down`
    computes = ["compute"] if flat else nodes
    addresses = {**LAN, **{n: node_ip(i) for i, n in enumerate(computes)}}
    roles = {n: n if n in LAN else "node" for n in addresses}
    write(STATE / "init.sh", Path(__file__).with_name("init.sh").read_text(), 0o755)
    (STATE / "gpus").mkdir()
    for gpu in range(GPUS):  # devices by the look of them, that are /dev/null
        os.mknod(STATE / f"gpus/nvidia{gpu}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))

    # users, names
    for file in ("passwd", "group", "shadow"):
        shutil.copy2(f"/etc/{file}", STATE / "etc" / file)
    for user, (uid, _) in USERS.items():
        for file, line in (
            ("passwd", f"{user}:x:{uid}:{uid}::/home/{user}:/bin/bash"),
            ("group", f"{user}:x:{uid}:"),
            ("shadow", f"{user}:{ssh.PASSWORD_HASH}:19000:0:99999:7:::"),
        ):
            with (STATE / "etc" / file).open("a") as out:
                out.write(line + "\n")
    names = [f"{ip} {n}" for n, ip in addresses.items()] + [f"{node_ip(0)} {n}" for n in nodes if flat]
    write(STATE / "etc/hosts", "127.0.0.1 localhost\n" + "\n".join(names) + "\n")
    write(STATE / "etc/resolv.conf", "")

    # Slurm
    write(STATE / "etc/slurm/slurm.conf", slurm.slurm_conf(nodes, flat, settings["cgroup"]))
    write(STATE / "etc/slurm/gres.conf", slurm.GRES_CONF)
    write(STATE / "etc/slurm/topology.conf", slurm.topology_conf(nodes))
    write(STATE / "etc/slurm/cgroup.conf", slurm.CGROUP_CONF)
    write(STATE / "etc/slurm/slurmdbd.conf", slurm.SLURMDBD_CONF, 0o600, "slurm")
    write(STATE / "etc/slurm/accounts.sh", slurm.accounts_sh())
    for compute in computes:
        write(STATE / f"etc/slurm/slurmds-on-{compute}", " ".join(nodes if flat else [compute]) + "\n")
    if not (CACHE / "mysql").exists():
        shutil.rmtree(CACHE / "mysql.new", ignore_errors=True)  # of an `up` that was interrupted
        run(
            "mariadb-install-db",
            "--no-defaults",
            "--user=slurm",
            f"--datadir={CACHE}/mysql.new",
            "--skip-test-db",
            "--skip-name-resolve",
            "--innodb-log-file-size=8M",
        )
        (CACHE / "mysql.new").rename(CACHE / "mysql")
    run("cp", "-a", f"{CACHE}/mysql", f"{STATE}/ctl/mysql")
    for directory in ("log", "ctl", "ctl/slurmctld"):
        shutil.chown(STATE / directory, "slurm", "slurm")

    ssh.make_keys(addresses, roles, nodes if flat else [])
    ssh.make_homes()
    Path("/lustre").mkdir(exist_ok=True)  # only the mount point: the hosts see STATE/lustre there
    return addresses, roles
