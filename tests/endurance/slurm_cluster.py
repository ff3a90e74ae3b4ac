"""A Slurm of real daemons on this machine: munged, slurmctld, and a slurmd for each node."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from tests.endurance.hosts import needs_namespaces, needs_programs
from tests.integration.commands import wait_until
from tests.integration.ray_cluster import free_port, processes_below

NODES = ("n1", "n2")

# By program, Debian's package that has it.
_PROGRAMS = {
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}

_CONFIGURATION = """
ClusterName=kdsearch
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
FirstJobId={first_job}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# In a process namespace of their own, which ends with them, and they with this process.
_START = """
munged --foreground --force --num-threads=2 --socket={folder}/munge.socket \
    --key-file={folder}/munge.key --pid-file={folder}/munged.pid --log-file={folder}/munged.log \
    --seed-file={folder}/munged.seed &
until [ -S {folder}/munge.socket ]; do sleep 0.1; done
slurmctld -D &
for node in {names}; do slurmd -D -N $node & done
wait
"""


class SlurmCluster:
    """Two nodes of one core and one GPU each, for all that Slurm knows.

    Attributes:
        environment: with which Slurm's commands find it.
    """

    def __init__(self) -> None:
        # Sockets lie in it, and their paths must stay below 108 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        configuration = self._folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(configuration)}
        # Ray's folders are named by the job, and somebody else's Slurm may be on this machine.
        first_job = secrets.randbelow(10**6) + 1
        nodes = "\n".join(
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={free_port()} CPUs=1 "
            f"Gres=gpu:a100:1 State=UNKNOWN"
            for name in NODES
        )
        configuration.write_text(
            _CONFIGURATION.format(
                folder=self._folder, controller=free_port(), nodes=nodes, first_job=first_job
            )
        )
        # A device that is there; nobody computes on it.
        (self._folder / "gres.conf").write_text("Name=gpu Type=a100 File=/dev/null\n")
        (self._folder / "state").mkdir()
        key = self._folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        start = _START.format(folder=self._folder, names=" ".join(NODES))
        with (self._folder / "daemons.log").open("wb") as output:
            self._daemons = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("sh", "-c", start),
                ],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        wait_until(self._is_up)

    def _is_up(self) -> bool:
        if self._daemons.poll() is not None:
            raise RuntimeError((self._folder / "daemons.log").read_text())
        return self.said("sinfo", "--noheader", "--format=%D %T") == f"{len(NODES)} idle"

    def said(self, *command: str) -> str:
        """What a command of Slurm prints; nothing where it fails."""
        done = self._command(*command, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    def _command(self, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        known = os.environ | self.environment
        return subprocess.run(command, env=known, capture_output=True, text=True, check=check)

    def state(self, job: str) -> str:
        """Slurm's word for a job; it forgets one some minutes after its end."""
        return self.said("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def end_soon(self, job: str) -> None:
        """Moves a running job's time limit so near that Slurm signals it."""
        minutes = int(
            self.said("squeue", "--noheader", f"--jobs={job}", "--format=%M").split(":")[-2]
        )
        self._command("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes + 2}")

    def cancel(self, job: str) -> None:
        self._command("scancel", job)

    def signal_trials(self, number: signal.Signals) -> None:
        """Sends a signal to the processes that run trials."""
        for pid in processes_below(self._daemons.pid, "ray::ImplicitFunc"):
            os.kill(pid, number)

    def close(self) -> None:
        self._daemons.kill()
        self._daemons.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def slurm_or_skip() -> None:
    """Skips a test where there can be no Slurm; in CI its packages must be there."""
    needs_namespaces()
    needs_programs(_PROGRAMS)
