"""Keys and configuration of sshd on the hosts and of ssh on this machine."""

from rig.layout import KEY, LAN, STATE, USERS, WAN
from rig.machine import run, write

SSHD_CONFIG = """\
Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile none
UsePAM yes
UseDNS no
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
MaxStartups 100:30:200
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""
# A second sshd on login, as hosts with a second factor have it: a key, then PASSWORD as the answer to PAM.
QUESTIONS = """\
Port 2022
KbdInteractiveAuthentication yes
AuthenticationMethods publickey,keyboard-interactive
"""
PASSWORD = "open sesame"
PASSWORD_HASH = (
    "$6$slurmrig$ueP7GTXIz3lvnuv0ZxnsPRbG3VbdWx7jNKm1crLp9F5.SZDMTdOXkhaF1NpV0lRPe.E9J34kD.tkw5q790tV3/"
)

SSH_CONFIG = f"""\
# ssh -F this-file login | bastion | login-jump (through bastion) | login-2fa (asks) | node001 (through login)
Host *
    User alice
    IdentityFile {KEY}
    IdentitiesOnly yes
    UserKnownHostsFile {STATE}/ssh/known_hosts
    StrictHostKeyChecking yes
Host login
    HostName {WAN["login"]}
Host bastion
    HostName {WAN["bastion"]}
Host login-2fa
    HostName {WAN["login"]}
    Port 2022
Host login-jump
    HostName {LAN["login"]}
    ProxyJump bastion
Host node*
    ProxyJump login
"""


def keygen(path):
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "slurm-rig", "-f", str(path))
    return path.with_suffix(".pub").read_text()


def make_keys(addresses, roles, aliases):
    """Host keys, one a role, and what knows them; `aliases` are further names of the first compute host."""
    host_key = {}
    for role in ("login", "bastion", "node", "ctl"):
        directory = STATE / f"etc/ssh-{role}"
        write(directory / "sshd_config", SSHD_CONFIG)
        host_key[role] = " ".join(keygen(directory / "ssh_host_ed25519_key").split()[:2])
    # The first value of an option counts.
    write(STATE / "etc/ssh-login/sshd_config_2fa", QUESTIONS + SSHD_CONFIG.replace("Port 22\n", ""))
    known = "".join(f"{n},{ip} {host_key[roles[n]]}\n" for n, ip in {**addresses, **WAN}.items())
    known += "".join(f"{ip} {host_key[roles[n]]}\n" for n, ip in addresses.items())
    known += "".join(f"{n} {host_key['node']}\n" for n in aliases)
    known += f"[{WAN['login']}]:2022 {host_key['login']}\n"
    write(STATE / "ssh/known_hosts", known)
    write(STATE / "ssh/config", SSH_CONFIG)
    for role in ("login", "bastion", "node", "ctl"):
        write(STATE / f"etc/ssh-{role}/ssh_known_hosts", known)


def make_homes():
    """The users' folders; one key for all of them from outside, one of each user's own inside the cluster."""
    public = keygen(KEY)
    for user, (uid, _) in USERS.items():
        folder = STATE / "home" / user / ".ssh"
        folder.mkdir(parents=True, mode=0o700)
        write(folder / "authorized_keys", public + keygen(folder / "id_ed25519"), 0o600)
        (STATE / "lustre" / user).mkdir(mode=0o750)
        (STATE / "home" / user).chmod(0o750)
        run("chown", "-R", f"{uid}:{uid}", f"{STATE}/home/{user}", f"{STATE}/lustre/{user}")
