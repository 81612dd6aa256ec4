"""A real Slurm of one node for a test: munged, slurmctld and slurmd with their configuration, state, keys, sockets and ports in a
temporary directory, so that neither /etc nor another Slurm on this machine is touched. Needs root. Nothing of it outlives
close(): daemons, steps and ranks are all descendants of this process, which adopts what loses its parent."""
import ctypes
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue", "scancel")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx")  # stand for GPUs
SEARCHED = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

# cred_expire is also how long a requeued job waits (120 s by default). config_overrides: more cores and GPUs than there are.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
TmpFS={directory}/tmp
FirstJobId={first_job}
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=100000
SlurmdParameters=config_overrides
MpiDefault=pmix
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait=5
JobCompType=jobcomp/filetxt
JobCompLoc={directory}/finished_jobs
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=1 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=normal Nodes=ALL Default=YES PriorityTier=1 PreemptMode=off
PartitionName=preemptible Nodes=ALL PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL PriorityTier=9 PreemptMode=off
"""


def why_not():
    """Why no Slurm can be started here; empty: it can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    missing = [p for p in PROGRAMS if shutil.which(p, path=SEARCHED) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def descendants():
    children = {}
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        children.setdefault(int(fields[1]), []).append((int(status.parent.name), fields[0]))
    found, parents = [], [os.getpid()]
    while parents:
        for pid, state in children.get(parents.pop(), []):
            parents.append(pid)
            if state != "Z":
                found.append(pid)
    return found


class Cluster:
    def __init__(self, cores=64):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="utrain-slurm-"))
        self.host = socket.gethostname().partition(".")[0]
        self.environment = dict(os.environ, PATH=SEARCHED, SLURM_CONF=str(self.directory / "slurm.conf"))
        self.daemons = []
        self.is_closing = False
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.die_with_parent = lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            self.start(cores)
        except BaseException:
            self.close()
            raise

    def start(self, cores):
        for name in ("state", "spool", "tmp"):
            (self.directory / name).mkdir()
        (self.directory / "slurm.conf").write_text(CONFIGURATION.format(
            first_job=os.getpid(), host=self.host, directory=self.directory, cores=cores, gpus=len(DEVICES), controller_port=free_port(), node_port=free_port()))
        (self.directory / "gres.conf").write_text(
            "".join(f"Name=gpu File=/dev/{device}\n" for device in DEVICES))
        key = self.directory / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self.daemon("munged", "--foreground", "--force", *(f"--{option}={self.directory}/munge.{ending}" for option, ending in (
            ("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))))
        self.wait_for("munged's socket", lambda: (self.directory / "munge.socket").exists(), 10)
        self.daemon("slurmctld", "-D")
        self.started = time.monotonic()
        self.daemon("slurmd", "-D", "-N", self.host)
        self.wait_for("an idle node", lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T").stdout.split(), 30)

    def daemon(self, program, *arguments):
        with open(self.directory / f"{program}.out", "w") as out:
            self.daemons.append(subprocess.Popen([program, *arguments], env=self.environment, stdin=subprocess.DEVNULL,
                                                 stdout=out, stderr=out, preexec_fn=self.die_with_parent, start_new_session=True))

    def wait_for(self, what, there, seconds):
        end = time.monotonic() + seconds
        while not there():
            ended = [d for d in self.daemons if d.poll() is not None]
            if ended or time.monotonic() > end:
                raise RuntimeError(f"no {what} after {seconds} s\n{self.logs()}")
            time.sleep(0.1)

    def run(self, *command):
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30)

    def logs(self):
        return "".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.directory.glob("*.out")))

    def close(self):
        """Ends every descendant: first the jobs by Slurm's own means, then whatever is left."""
        if self.is_closing:
            return
        self.is_closing = True
        if len(self.daemons) == 3:
            self.run("scancel", "--user=root")
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        end = time.monotonic() + 3
        while descendants():
            for pid in descendants():
                if time.monotonic() > end:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            time.sleep(0.05)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                break
        shutil.rmtree(self.directory, ignore_errors=True)
