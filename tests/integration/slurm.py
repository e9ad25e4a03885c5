"""A real Slurm on this machine, and the grid of places.py through it: a job killed, one queued again, one out of time.

    python tests/integration/slurm.py [OVERRIDE...]      # make test-slurm

Needs Slurm and munge (Debian: apt-get install slurmctld slurmd slurm-client munge) and the extra `slurm`, and is run as root,
as slurmd is. All files lie in a folder of their own; the daemons are children of this process and end with it.
"""

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from places import compare, disturbed, killed, read, sweep, workplace

from msrnn_bench.results.leases import Holder

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1024 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
LAUNCHER = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1"]


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """A cluster of one node. cred_expire=5: what is queued again starts after that, and not after two minutes."""
    for tool in ("munged", "slurmctld", "slurmd", "sbatch"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not here: apt-get install slurmctld slurmd slurm-client munge")
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    user, host, ports = psutil.Process().username(), platform.node().partition(".")[0], [_free_port(), _free_port()]
    conf.write_text(CONF.format(host=host, ports=ports, folder=folder, user=user, cpus=os.cpu_count()))
    os.environ["SLURM_CONF"] = str(conf)
    subprocess.run(["mungekey", "--create", f"--keyfile={folder}/munge.key"], check=True)
    munge = [
        f"--{kind}={folder}/munge.{kind.partition('-')[0]}"
        for kind in ("key-file", "log-file", "pid-file", "seed-file", "socket")
    ]
    daemons = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for daemon in daemons:
            log = (folder / f"{daemon[0]}.out").open("wb")
            running.append(subprocess.Popen(daemon, stdout=log, stderr=log))
            time.sleep(2)
        for _ in range(60):
            if "idle" in _asked("sinfo", "--noheader", "--format=%T"):
                break
            time.sleep(1)
        else:
            sys.exit(f"Slurm is not up: {_asked('sinfo')}\n" + "".join(log.read_text() for log in folder.glob("*.out")))
        yield
    finally:
        _asked("scancel", f"--user={user}")
        time.sleep(2)
        for process in reversed(running):
            process.terminate()
            process.wait(30)


def _asked(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _job(holder: Holder) -> str:
    """The id of the job that a process belongs to."""
    environment = psutil.Process(holder.pid).environ()
    return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"


def requeued(holder: Holder) -> str:
    """What an administrator does, or the cluster after a node's failure."""
    job = _job(holder)
    subprocess.run(["scontrol", "requeue", job], check=True)
    return f"scontrol requeue {job} at {holder.label}"


def out_of_time(holder: Holder) -> str:
    """The signal of a time limit that runs out, by submitit's own call for tests."""
    from submitit import SlurmJob

    job = _job(holder)
    if not _heeds(holder.pid, signal.SIGUSR2):
        return ""
    try:
        SlurmJob(folder="multirun/.submitit/%j", job_id=job)._interrupt(timeout=True)
    except subprocess.CalledProcessError:
        return ""  # it was over
    return f"job._interrupt(timeout=True) of {job} at {holder.label}"


def terminated(holder: Holder) -> str:
    """What Slurm sends some seconds before it kills, and submitit passes by."""
    psutil.Process(holder.pid).terminate()
    return f"TERM to process {holder.pid} at {holder.label}"


def _heeds(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt:")).split()[1]
    return bool(int(caught, 16) >> (number - 1) & 1)


if __name__ == "__main__":
    with workplace() as folder:
        told = (process := sweep("calm")).communicate()[0]
        assert process.returncode == 0, told
        tables = {"calm": read("calm")}
        with slurm(folder / "slurm"):
            for disturb in (killed, terminated, requeued, out_of_time):
                name = f"slurm_{disturb.__name__}"
                tables[name] = disturbed(name, disturb, *LAUNCHER)
        compare(tables)
