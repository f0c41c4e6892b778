#!/bin/bash
# shellcheck disable=SC2086,SC1091,SC2013  # the rig's own words: no spaces
# init.sh NAME ROLE: process 1 of one simulated host.  It starts in its own network, host name, mount and process
# namespaces, arranges the file system, starts the daemons of its role and then only reaps orphans.
# RIG_STATE and RIG_CACHE are the rig's folders outside.
set -eu
name=$1 role=$2 S=$RIG_STATE C=$RIG_CACHE
read -r hostpid _ < /proc/self/stat         # /proc is still the outer one: our process id as the outside sees it
echo "$hostpid" > $S/run/$name.pid
mount -t proc proc /proc
hostname "$name"
for dir in /* /var/tmp /dev/shm /var/spool /var/lib/munge /var/log/munge; do
    case $dir in
    /bin | /boot | /dev | /etc | /home | /lib* | /lustre | /proc | /sbin | /sys | /usr | /var) ;;    # kept, or below
    *) if [ -d "$dir" ] && ! [ -L "$dir" ]; then mount -t tmpfs -o mode=755 rig "$dir"; fi ;;
    esac
done
chmod 1777 /tmp /var/tmp /dev/shm
chmod 700 /root
mkdir -p /run/sshd /run/munge /run/mysqld /run/slurm /run/nvidia /var/spool/slurmd
chown slurm: /run/mysqld /run/slurm
chown munge: /run/munge /var/lib/munge /var/log/munge
mount --bind $S/gpus /run/nvidia
for file in passwd group shadow hosts resolv.conf; do mount --bind $S/etc/$file /etc/$file; done
echo "$name" > /run/hostname; mount --bind /run/hostname /etc/hostname
mount --bind $S/etc/ssh-$role /etc/ssh
mount --bind $S/home /home
mount --bind $S/lustre /lustre
mount --bind $C/venv /lustre/venv
if [ $role != bastion ]; then
    mount --bind $S/etc/slurm /etc/slurm
    mount --bind $S/log /var/log/slurm
    setpriv --reuid munge --regid munge --clear-groups munged        # the package's key serves all the hosts
fi
if [ $role = ctl ]; then mount --bind $S/ctl /var/lib/slurm; fi
mount -t tmpfs -o mode=755 rig $S            # the rig's own files are no business of the cluster
exec < /dev/null
cd /

wait_until() {      # wait_until COMMAND...: up to 30 s
    for _ in $(seq 600); do "$@" 2>/dev/null && return 0; sleep 0.05; done
    echo "gave up waiting for: $*" >&2; return 1
}
listening() { (exec 3<>/dev/tcp/$1/$2); }

case $role in
ctl)
    sock=/run/mysqld/mysqld.sock
    mariadbd --no-defaults --user=slurm --datadir=/var/lib/slurm/mysql --socket=$sock --skip-networking \
        --skip-grant-tables --innodb-log-file-size=8M --innodb-flush-log-at-trx-commit=2 --innodb-flush-method=nosync \
        --innodb-lock-wait-timeout=900 > /var/log/slurm/mariadbd.log 2>&1 &
    wait_until test -S $sock
    setpriv --reuid slurm --regid slurm --clear-groups slurmdbd
    wait_until listening localhost 6819
    if ! [ -e /var/lib/slurm/accounts-made ]; then . /etc/slurm/accounts.sh; touch /var/lib/slurm/accounts-made; fi
    setpriv --reuid slurm --regid slurm --clear-groups slurmctld
    wait_until listening ctl 6817
    ;;
login | bastion)
    /usr/sbin/sshd
    if [ $role = login ]; then /usr/sbin/sshd -f /etc/ssh/sshd_config_2fa; fi
    ;;
node)
    /usr/sbin/sshd
    for n in $(cat /etc/slurm/slurmds-on-$name); do mkdir /var/spool/slurmd/$n; slurmd -N $n; done
    ;;
esac
touch /run/booted
while :; do sleep infinity & wait $! || true; done
