"""Machines on one machine: each is a set of Linux namespaces, with an address, an SSH server, a
home, temporary files and processes of its own.

They are on a network that leads nowhere else. Nothing outside is changed: users and names stand in
files that only the machine sees. When the process that made them ends, however, they end too. Only
root can make them.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.commands import wait_until
from tests.integration.ray_cluster import ROOT, family

USER = "ubuntu"
# No user of this machine.
_UID = 54321
_GATEWAY = "192.0.2.1"
_PROGRAMS = {
    "/usr/sbin/sshd": "openssh-server",
    "rsync": "rsync",
    "ip": "iproute2",
    "ss": "iproute2",
    "setpriv": "util-linux",
    "pgrep": "procps",
    "psql": "postgresql",
    "curl": "curl",
    "openssl": "openssl",
}

# Folders of which a machine has its own, but for what Python needs of them.
_OWN = ("/home", "/root", "/run", "/dev/shm", "/tmp")

# A daemon that ends when it is told to quit.
_MPS = """
if [ "${1:-}" = -d ]; then
    setsid sleep infinity > /dev/null 2>&1 < /dev/null &
    echo $! > "$CUDA_MPS_PIPE_DIRECTORY.pid"
elif grep -q quit; then
    kill "$(cat "$CUDA_MPS_PIPE_DIRECTORY.pid")"
fi
"""

_INSIDE = r"""
set -euo pipefail
stage=$1 name=$2 shared=$3
shift 3  # what it sees of the folders that it has of its own
hostname "$name"
ip link set lo up
mkdir -p "$stage"
mount -t tmpfs -o mode=755 none "$stage"
mkdir "$stage/etc"
for file in passwd shadow group; do
    grep -v "^$USER_NAME:" "/etc/$file" > "$stage/etc/$file"
done
echo "$USER_NAME:x:$USER_ID:$USER_ID::/home/$USER_NAME:/bin/bash" >> "$stage/etc/passwd"
echo "$USER_NAME:*:19000:0:99999:7:::" >> "$stage/etc/shadow"
echo "$USER_NAME:x:$USER_ID:" >> "$stage/etc/group"
chmod 600 "$stage/etc/shadow"
cp "$HOSTS" "$stage/etc/hosts"
: > "$stage/etc/resolv.conf"
for file in "$stage"/etc/*; do
    mount --bind "$file" "/etc/${file##*/}"
done
for own in $OWN; do
    new=$stage$own
    mkdir -p "$new"
    chmod 755 "$new"
    for seen in "$@"; do
        case $seen in "$own"/*)
            mkdir -p "$stage$seen"
            mount --bind "$seen" "$stage$seen" ;;
        esac
    done
done
chmod 1777 "$stage/tmp" "$stage/dev/shm"
mkdir "$stage/run/sshd"
home=$stage/home/$USER_NAME
mkdir -m 750 "$home" && mkdir -m 700 "$home/.ssh" "$stage/root/.ssh"
cp "$KEY.pub" "$home/.ssh/authorized_keys"
cp "$KEY" "$stage/root/.ssh/id_ed25519"
cp "$PROFILE" "$home/.profile"
touch "$home/.bashrc"
chown -R "$USER_ID:$USER_ID" "$home"
mount --bind "$shared" /srv
key=$(cat "$KEY")
for own in $OWN; do
    mount --rbind "$stage$own" "$own"
done
if [ "$name" != laptop ]; then
    (umask 077; echo "$key" > /run/host_key)
    /usr/sbin/sshd -o HostKey=/run/host_key -o UsePAM=no -o PasswordAuthentication=no \
        -o PidFile=none -f /dev/null
fi
touch /run/is-up
while :; do sleep 3600 & wait $!; done  # also for processes whose parents have ended
"""


def needs_namespaces() -> None:
    """Skips a test where there can be none."""
    if os.getuid() != 0:
        pytest.skip("only root can make namespaces; run as root")
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], check=False)
    if tried.returncode != 0:
        pytest.skip("this container may not make namespaces; it lacks CAP_SYS_ADMIN")


def needs_programs(programs: Mapping[str, str]) -> None:
    """Skips a test where a program is missing; in CI it must be there.

    Args:
        programs: by name, Debian's package that has it.
    """
    if missing := {pack for name, pack in programs.items() if shutil.which(name) is None}:
        words = f"{', '.join(sorted(missing))} missing; install these packages of Debian"
        if os.environ.get("CI") == "true":
            pytest.fail(words)
        pytest.skip(words)


def needs_hosts() -> None:
    """Skips a test where no machines can be made; in CI the packages must be there."""
    needs_namespaces()
    needs_programs(_PROGRAMS)


class Host:
    """A machine that is up.

    Args:
        name: of the machine.
        address: of it.
        process: that made its namespaces.
    """

    def __init__(self, name: str, address: str, process: "subprocess.Popen[bytes]") -> None:
        self.name, self.address, self._process = name, address, process

    @property
    def pid(self) -> int:
        """Of its first process."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return int(children.read_text().split()[0])

    def command(self, *words: str, user: str = USER, **variables: str) -> list[str]:
        """A command line that runs a command on it, in the user's home.

        Args:
            words: of the command.
            user: whose process it is.
            variables: of its environment, which has nothing else but home and path.
        """
        root = user == "root"
        home = "/root" if root else f"/home/{user}"
        known = {"HOME": home, "USER": user, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"} | variables
        inside = ["env", "-i", *(f"{key}={value}" for key, value in known.items()), *words]
        if not root:
            inside = ["setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups", *inside]
        enter = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--uts"]
        return [*enter, "--ipc", f"--wdns={home}", "--", *inside]

    def run(self, *words: str, user: str = USER, check: bool = True, **variables: str) -> str:
        """What a command prints that runs on it."""
        done = subprocess.run(
            self.command(*words, user=user, **variables),
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
        )
        assert not check or done.returncode == 0, f"{words} on {self.name}: {done.stdout}"
        return done.stdout

    def cut_off(self) -> None:
        """Pulls its network cable."""
        self.run("ip", "link", "set", "eth0", "down", user="root")

    def connect(self) -> None:
        """Plugs the cable in."""
        self.run("ip", "link", "set", "eth0", "up", user="root")
        self.run("ip", "route", "replace", "default", "via", _GATEWAY, user="root")

    def kill_all(self) -> None:
        """Kills all processes of the user at once."""
        self.run("kill", "-9", "--", "-1", check=False)

    def processes(self) -> list[str]:
        """The command lines of the user's processes, but for those of SSH."""
        listed = self.run("ps", "-u", str(_UID), "-o", "args=", user="root", check=False)
        return [line for line in listed.splitlines() if not line.startswith("sshd: ")]

    def listening(self) -> dict[tuple[str, int], str]:
        """By address and port that are listened on, the command lines of who does."""
        args = self.run("ps", "-e", "-o", "pid=,args=", user="root")
        command = dict(map(_first_word, args.splitlines()))
        found = {}
        for line in self.run("ss", "-H", "-l", "-t", "-n", "-p", user="root").splitlines():
            address, _, port = line.split()[3].rpartition(":")
            address = address.strip("[]").removeprefix("::ffff:")
            pids = re.findall(r"pid=(\d+)", line)
            # One that has just ended has no command.
            found[address, int(port)] = " ".join(command.get(pid, "") for pid in pids)
        return found


class Network:
    """A switch with machines.

    Args:
        folder: for what they share, and for their making.

    Attributes:
        hosts: the machines by name. The one that is called laptop has the key to the others, and no
            SSH server.
        shared: the folder that is `/srv` of each.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.shared = folder, folder / "shared"
        self.hosts: dict[str, Host] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def open(
        self, names: Mapping[str, str], variables: Mapping[str, str], programs: Mapping[str, str]
    ) -> None:
        """Makes machines; the arguments are those of `network`."""
        folder = self._folder
        self.shared.mkdir()
        os.chown(self.shared, _UID, _UID)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True
        )
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for address, name in names.items())]
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        (folder / "profile").write_text(self._profile(variables, programs))
        (folder / "inside.sh").write_text(_INSIDE)
        self._switch = self._start("unshare", "--net", "sleep", "infinity")
        wait_until(lambda: _namespace(self._switch.pid) != _namespace(os.getpid()))
        self._ip("link", "add", "name", "bridge", "type", "bridge")
        self._ip("addr", "add", f"{_GATEWAY}/24", "dev", "bridge")
        self._ip("link", "set", "bridge", "up")
        self._in_switch("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for address, name in names.items():
            self.hosts[name] = self._add(name, address)

    def give(self, host: Host, *addresses: str) -> None:
        """Gives a machine further addresses, of which it takes the last one for its own."""
        for address in addresses:
            host.run("ip", "addr", "add", f"{address}/32", "dev", "eth0", user="root")
            self._ip("route", "add", address, "via", host.address)
        way = ["default", "via", _GATEWAY, "src", addresses[-1]]
        host.run("ip", "route", "replace", *way, user="root")

    def _profile(self, variables: Mapping[str, str], programs: Mapping[str, str]) -> str:
        """What every machine has beforehand: Python, and what the package needs, since none of it
        can be downloaded. `ray` and `mlflow` are those of the environment that the cluster's file
        makes, so they are no commands here."""
        folder = self._folder / "programs"
        folder.mkdir()
        (folder / "python3").symlink_to(Path(sys._base_executable))  # type: ignore[attr-defined]
        scripts = {
            "ray": 'exec python3 -m ray.scripts.scripts "$@"',
            "mlflow": 'exec python3 -m mlflow "$@"',
            "nvidia-cuda-mps-control": _MPS,
            **programs,
        }
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        # All but this package, which every machine is to have of its own.
        (folder / "packages").mkdir()
        for package in Path(pytest.__file__).parents[1].iterdir():
            if "kdsearch" not in package.name:
                (folder / "packages" / package.name).symlink_to(package)
        # To pip `false` means that what builds the package is not to be downloaded.
        offline = "[global]\nno-index = true\n[install]\nno-build-isolation = false\n"
        (folder / "pip.conf").write_text(offline)
        known = {
            "PATH": f"{folder}:$PATH",
            "PYTHONPATH": folder / "packages",
            "PIP_CONFIG_FILE": folder / "pip.conf",
            # Ray gives up a lost head after a minute.
            "RAY_gcs_rpc_server_reconnect_timeout_s": 30,
            **variables,
        }
        return "".join(f"export {name}={value}\n" for name, value in known.items())

    def _add(self, name: str, address: str) -> Host:
        seen = [sys.prefix, sys.base_prefix, str(self._folder / "programs")]
        if name == "laptop":
            seen.append(str(ROOT))
        variables = {
            "USER_NAME": USER,
            "USER_ID": str(_UID),
            "KEY": str(self._folder / "key"),
            "PROFILE": str(self._folder / "profile"),
            "HOSTS": str(self._folder / "hosts"),
            "OWN": " ".join(_OWN),
        }
        spaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        process = self._start(
            *("env", *(f"{key}={value}" for key, value in variables.items())),
            *("unshare", *spaces, "--mount-proc", "bash", str(self._folder / "inside.sh")),
            *(str(self._folder / f"stage-{name}"), name, str(self.shared), *seen),
        )
        host = Host(name, address, process)
        wait_until(lambda: len(family(process.pid)) > 1)
        cable = f"to-{name}"
        self._ip("link", "add", cable, "type", "veth", "peer", "eth0", "netns", str(host.pid))
        self._ip("link", "set", cable, "master", "bridge")
        self._ip("link", "set", cable, "up")
        host.run("ip", "addr", "add", f"{address}/24", "dev", "eth0", user="root")
        host.connect()

        def is_up() -> bool:
            assert process.poll() is None, f"{name} did not come up"
            return Path(f"/proc/{host.pid}/root/run/is-up").exists()

        wait_until(is_up)
        return host

    def close(self) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGKILL)
            process.wait()

    def _start(self, *command: str) -> "subprocess.Popen[bytes]":
        """A process that is killed, with all that it has made, when this one ends."""
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command])
        self._processes.append(process)
        return process

    def _ip(self, *words: str) -> None:
        self._in_switch("ip", *words)

    def _in_switch(self, *words: str) -> None:
        enter = ["nsenter", "--target", str(self._switch.pid), "--net"]
        subprocess.run([*enter, *words], check=True)


@contextmanager
def network(
    folder: Path,
    names: Mapping[str, str],
    *,
    variables: Mapping[str, str] | None = None,
    programs: Mapping[str, str] | None = None,
) -> Iterator[Network]:
    """Machines until the end of the block.

    Args:
        folder: for what they share, and for their making.
        names: of the machines, by address.
        variables: that their user's profile sets.
        programs: scripts of the shell that they have as commands.
    """
    made = Network(folder)
    try:
        made.open(names, variables or {}, programs or {})
        yield made
    finally:
        made.close()


def _first_word(line: str) -> tuple[str, str]:
    word, _, rest = line.strip().partition(" ")
    return word, rest


def _namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")
