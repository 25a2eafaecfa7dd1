"""A real Slurm of several nodes on this machine, each a network namespace with a /tmp of its own. Needs root.

Slurm's daemons listen inside of the namespaces, keep all that they write in one folder, and have a munged with a key
of their own: nothing of the machine's Slurm, where it has one, is read or touched.
"""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from namespaces import build_network
from ray_node import Host
from waiting import wait_until

ROOT = Path(__file__).parents[2]
_LEAD = "lead"
_SETTINGS = """
ClusterName=tests
SlurmctldHost={lead}({ip})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
GresTypes=gpu
PartitionName=all Nodes=ALL Default=YES
"""


@dataclass(frozen=True)
class Slurm:
    """`lead`: the host of slurmctld, where people send their jobs."""

    folder: Path
    lead: Host

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            [*self.lead.enter, *command],
            env=_build_environment(self.folder),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout.strip()

    def describe(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, ExitCode, …"""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", job)))

    def list_idle_nodes(self) -> list[str]:
        return self.ask("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N").split()


@contextlib.contextmanager
def run_slurm(folder: Path, *names: str, cpus: int) -> Iterator[Slurm]:
    """A Slurm with a node of each name, which has this many CPUs and what counts as a GPU; `folder` is its own."""
    with build_network(_LEAD, *names) as network, contextlib.ExitStack() as stack:
        hosts = dict(network.hosts)
        _write_settings(folder, hosts, cpus)
        lead = hosts.pop(_LEAD)
        munged = [
            "munged",
            "--foreground",
            "--force",
            f"--key-file={folder}/munge.key",
            f"--socket={folder}/munge.socket",
        ]
        files = [f"--{name}-file={folder}/munged.{name}" for name in ("log", "pid", "seed")]
        stack.enter_context(_run_daemon(folder, _LEAD, [*munged, *files]))
        wait_until((folder / "munge.socket").exists, 10)
        own = ["-D", "-f", str(folder / "slurm.conf")]
        stack.enter_context(_run_daemon(folder, _LEAD, [*lead.enter, "slurmctld", "-i", *own]))
        for name, host in hosts.items():
            stack.enter_context(_run_daemon(folder, name, [*host.enter, *_keep_tmp_apart(folder), "slurmd", *own]))
        slurm = Slurm(folder, lead)
        stack.callback(network.kill_all)  # Slurm's jobs are not its daemons' children
        wait_until(lambda: slurm.list_idle_nodes() == sorted(names), 30)
        yield slurm


def _write_settings(folder: Path, hosts: dict[str, Host], cpus: int) -> None:
    text = _SETTINGS.format(folder=folder, lead=_LEAD, ip=hosts[_LEAD].ip)
    for name, host in hosts.items():
        if name != _LEAD:
            text += f"NodeName={name} NodeAddr={host.ip} CPUs={cpus} Gres=gpu:1\n"
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/zero\n")
    with open(os.open(folder / "munge.key", os.O_CREAT | os.O_WRONLY, 0o400), "wb") as key:
        key.write(secrets.token_bytes(128))
    (folder / "state").mkdir()


def _keep_tmp_apart(folder: Path) -> list[str]:
    """The command that gives what is started an empty /tmp, in which only the paths that every node reaches are."""
    shared = [path for path in (folder.parent, Path(sys.prefix), ROOT) if path.is_relative_to("/tmp")]
    binds = [f"mkdir -p '/mnt{path}' && mount --rbind '{path}' '/mnt{path}'" for path in shared]
    steps = ["mount -t tmpfs none /mnt", "mkdir -m 1777 /mnt/tmp", *binds, "mount --rbind /mnt/tmp /tmp"]
    return ["unshare", "--mount", "sh", "-c", f'{" && ".join(steps)} && exec "$@"', "sh"]


def _build_environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf"), "GLOO_SOCKET_IFNAME": "eth0"}


@contextlib.contextmanager
def _run_daemon(folder: Path, name: str, command: list[str]) -> Iterator[None]:
    with (folder / f"{name}.out").open("ab") as out:
        process = subprocess.Popen(command, env=_build_environment(folder), stdout=out, stderr=out)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
