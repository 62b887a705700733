"""A private SLURM cluster of three nodes on this machine, for tests.

Two nodes with CPUs (partition `cpu`, the default one) and one with a GPU that is only pretended
(partition `gpu`). Nodes advertise more than the machine has; memory and devices are scheduled and
not enforced. Keys, sockets, configuration, state and logs lie in one temporary folder;
/etc/slurm and /etc/munge are neither read nor written. No systemd, no cgroups, no accounting;
works as root and as an ordinary user.

By hand: `python tests/slurm_cluster.py` starts one, prints the lines to `eval` in another shell,
and takes it down at Ctrl-C or the end of its input.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scancel", "scontrol")
PACKAGES = "munge slurmctld slurmd slurm-client"
NODES = {"cpu1": "", "cpu2": "", "gpu1": "Gres=gpu:fake:1"}
CPUS = 16  # of each node
MEMORY = 64_000  # MB of each node

CONFIG = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# a node that a test sets down stays down
ReturnToService=1
MpiDefault=none
SwitchType=switch/none
# no cgroups: in containers and as an ordinary user there are none to be had
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# a node may advertise more than the machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
# schedule at once: a test should wait for jobs only
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
KillWait=2
# squeue and scontrol answer for finished jobs this many seconds
MinJobAge=3600
PropagateResourceLimits=NONE
{nodes}
PartitionName=cpu Nodes=cpu1,cpu2 Default=YES DefaultTime=10 MaxTime=INFINITE DefMemPerCPU=100
PartitionName=gpu Nodes=gpu1 DefaultTime=10 MaxTime=INFINITE DefMemPerCPU=100
"""


def which(command: str) -> str | None:
    """Where `command` lies; daemons lie in folders an ordinary user's PATH leaves out."""
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def missing() -> list[str]:
    """The commands of SLURM and munge that this machine lacks."""
    return [command for command in COMMANDS if which(command) is None]


def free_ports(n: int) -> list[int]:
    """`n` ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until(condition, seconds: float, what: str, every: float = 0.2):
    """Poll until `condition()` is true and return its value; TimeoutError naming `what`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"after {seconds} s: {what}")
        time.sleep(every)
    return value


class Cluster:
    """The cluster as its users see it: `env` to run commands in, and what the queue says."""

    def __init__(self, folder: Path):
        """`folder` is that of a cluster which runs."""
        self.folder = folder
        self.env = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder / 'bin'}:{os.environ.get('PATH', '')}",
        }

    def run(self, *command: str, check: bool = True) -> str:
        """The output of a command of SLURM."""
        done = subprocess.run(command, env=self.env, text=True, capture_output=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """Every job of the last hour, queued, running and finished: scontrol's fields by name."""
        out = self.run("scontrol", "--oneliner", "show", "job")
        lines = [line for line in out.splitlines() if line.startswith("JobId=")]
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def queue(self) -> list[str]:
        """Identifiers of the jobs that wait, run or are ending."""
        states = "PENDING,CONFIGURING,RUNNING,COMPLETING,SUSPENDED"
        return self.run("squeue", "--noheader", "--states", states, "--format", "%i").split()

    def set_node(self, node: str, state: str) -> None:
        """Set `node` DOWN, or RESUME it."""
        self.run("scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=test")


@contextlib.contextmanager
def running():
    """A cluster for the length of a `with`; it goes when this process does, however that ends."""
    script = str(Path(__file__).resolve())
    # the cluster's own process notices that this one is gone by the end of its input
    keeper = subprocess.Popen(
        [sys.executable, script, "--keep"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is not meant for it
    )
    try:
        folder = keeper.stdout.readline().strip()
        if not folder:
            raise RuntimeError("the SLURM cluster did not start; its own message is above")
        yield Cluster(Path(folder))
    finally:
        keeper.stdin.close()
        keeper.wait(timeout=60)


def configure(folder: Path) -> None:
    """Write the configuration of a new cluster."""
    folder.chmod(0o755)  # munge wants its socket where everybody may come
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    host = socket.gethostname().split(".")[0]
    ports = free_ports(1 + len(NODES))
    lines = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} "
        f"RealMemory={MEMORY} {extra}"
        for port, (name, extra) in zip(ports[1:], NODES.items(), strict=True)
    ]
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    (folder / "slurm.conf").write_text(
        CONFIG.format(folder=folder, host=host, ports=ports, user=user, nodes="\n".join(lines))
    )
    # slurmd wants a character device; the digit at its end is the index of the GPU
    (folder / "gpu0").symlink_to("/dev/null")
    (folder / "gres.conf").write_text(f"NodeName=gpu1 Name=gpu Type=fake File={folder / 'gpu0'}\n")
    # Snakemake's jobs call srun without SLURM_CONF in their environment
    (folder / "bin").mkdir()
    shim = folder / "bin" / "srun"
    shim.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {which("srun")} "$@"\n')
    shim.chmod(0o755)


class Daemons:
    """The processes of a cluster, children of this one."""

    def __init__(self, folder: Path):
        """`folder` is empty and becomes the cluster's."""
        self.folder = folder
        self.cluster = Cluster(folder)
        self.started: list[subprocess.Popen] = []

    def start(self) -> None:
        """Configure and start everything; returns when a job has run."""
        folder = self.folder
        configure(folder)
        force = ["--force"] if os.geteuid() == 0 else []
        self.launch(
            *("munged", "--foreground", *force, f"--key-file={folder}/munge.key"),
            *(f"--socket={folder}/munge.sock", f"--pid-file={folder}/munged.pid"),
            *(f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"),
        )
        wait_until((folder / "munge.sock").exists, 10, "munged has no socket")
        self.launch("slurmctld", "-D", "-c")
        for node in NODES:
            (folder / f"spool-{node}").mkdir()
            self.launch("slurmd", "-D", "-c", "-N", node)
        wait_until(self.idle, 30, "not all nodes came up")
        self.cluster.run("srun", "-t", "1", "true")

    def launch(self, command: str, *arguments: str) -> None:
        """Start a daemon in the foreground, its output in a file."""
        with open(self.folder / "daemons.out", "a") as out:
            self.started.append(
                subprocess.Popen(
                    [which(command), *arguments],
                    env=self.cluster.env,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
            )

    def idle(self) -> bool:
        """Whether every node waits for work."""
        states = self.cluster.run("sinfo", "-hN", "-o", "%T", check=False).split()
        return len(states) >= len(NODES) and set(states) == {"idle"}

    def stop(self) -> None:
        """Cancel what is queued, stop the daemons, and end whatever jobs left behind."""
        user = str(os.geteuid())
        with contextlib.suppress(Exception):  # an unwell cluster is stopped all the same
            self.cluster.run("scancel", f"--user={user}")
            wait_until(lambda: not self.cluster.queue(), 10, "jobs do not end")
        for daemon in reversed(self.started):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for pid in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def leftovers(self) -> list[int]:
        """Processes whose environment names this cluster's folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"{self.folder}/slurm.conf".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found


def keep(tell) -> None:
    """Start a cluster, `tell` it to whoever asked, and stop it at the end of standard input."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    daemons = Daemons(folder)
    try:
        daemons.start()
        tell(daemons.cluster)
        sys.stdin.read()
    except KeyboardInterrupt:
        pass
    except Exception:
        for log in [*sorted(folder.glob("*.log")), *folder.glob("daemons.out")]:
            print(f"--- {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
        raise
    finally:
        daemons.stop()


def tell_shell(cluster: Cluster) -> None:
    """What to `eval` in another shell."""
    path = f"{cluster.folder / 'bin'}:$PATH"
    print(f"export SLURM_CONF={cluster.env['SLURM_CONF']} PATH={path}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--keep"]:
        keep(lambda cluster: print(cluster.folder, flush=True))
    else:
        keep(tell_shell)
