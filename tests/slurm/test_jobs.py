"""The scripts of jobs/ under a real Slurm: with a stand-in for utrain what is requeued and what is not, and utrain itself
stopped ahead of its time limit, requeued and continued to the same curve and adapter; and a bundle. About two minutes."""
import atexit
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import cluster

ROOT = pathlib.Path(__file__).resolve().parents[2]
STAND_IN = str(ROOT / "tests/slurm/stand_in.py")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL"}
slurm = None
limited = None  # the run that is stopped at its limit: most of it is waiting, so it goes on beside the other tests


def setUpModule():
    global slurm, limited
    why_not = cluster.why_not()
    if why_not:
        # Where tools/packages could have installed it, a Slurm that is missing is a failure.
        if os.geteuid() == 0 and os.path.exists("/usr/bin/dpkg-query"):
            raise RuntimeError(f"no Slurm: {why_not}; run: tools/packages slurm")
        raise unittest.SkipTest(f"jobs/ not tested under Slurm: {why_not}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # ends the tests, and leaves by atexit
    slurm = cluster.Cluster()
    atexit.register(slurm.close)  # unittest's own clean-ups are left out at Ctrl-C
    slurm.environment.update(OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                             UTRAIN_MPIRUN_FLAGS="--oversubscribe --bind-to none")
    steps = steps_in(20)  # before anything else runs here
    limited = concurrent.futures.Future()
    threading.Thread(target=stop_at_limit, args=(steps, limited), daemon=True).start()


class Job:
    """A job, its output and the log of its stand-in."""

    def __init__(self, directory, number, refusal=""):
        self.directory, self.id, self.refusal = directory, number, refusal
        self.output = directory / "output"

    def field(self, name):
        words = slurm.run("scontrol", "show", "job", "--oneliner", self.id).stdout.split()
        return dict(w.partition("=")[::2] for w in words if "=" in w).get(name, "")

    def wait_until(self, there, seconds, what):
        end = time.monotonic() + seconds
        while not there():
            if slurm.is_closing or time.monotonic() > end:
                raise AssertionError(f"job {self.id} is not {what} after {seconds} s\n{self.text()}\n{self.field('JobState')}")
            time.sleep(0.1)
        return self

    def wait(self, seconds=60):
        return self.wait_until(lambda: self.field("JobState") in ENDED, seconds, "over")

    def wait_for_step(self):
        return self.wait_until(lambda: "step 2" in self.log(), 30, "at step 2")

    def outcome(self):
        return self.field("JobState"), int(self.field("ExitCode").split(":")[0]), int(self.field("Restarts"))

    def text(self):
        return self.output.read_text() if self.output.exists() else ""

    def log(self):
        path = self.directory / "log"
        return path.read_text().splitlines() if path.exists() else []

    def steps(self):
        return [int(line.split()[1]) for line in self.log() if line.startswith("step")]


def new_directory(name, **keys):
    """A directory with the stand-in's input file."""
    directory = slurm.directory / name
    directory.mkdir()
    (directory / "input.json").write_text(json.dumps({"dir": str(directory), **keys}))
    return directory


def submit(name, *flags, script="one_node.sh", launch="srun", ranks=4, **keys):
    directory = new_directory(f"{name}-{launch}", **keys)
    return submit_program(directory, STAND_IN, [str(directory / "input.json")], *flags, script=script, launch=launch, ranks=ranks)


def submit_program(directory, program, arguments, *flags, script="one_node.sh", launch="srun", ranks=4, submit_in=ROOT):
    command = ["sbatch", "--parsable", "--account=some", f"--ntasks-per-node={ranks}", "--cpus-per-task=1", "--gpus-per-node=1",
               f"--output={directory}/output", *flags, f"jobs/{script}", *arguments]
    done = subprocess.run(command, env=dict(slurm.environment, UTRAIN=program, UTRAIN_LAUNCH=launch), cwd=submit_in,
                          capture_output=True, text=True)
    return Job(directory, done.stdout.strip(), done.stderr)


def submit_chain(name, n_jobs, **keys):
    directory = new_directory(name, **keys)
    done = subprocess.run(["jobs/chain.sh", str(n_jobs), "jobs/one_node.sh", str(directory / "input.json")], cwd=ROOT,
                          capture_output=True, text=True, env=dict(
                              slurm.environment, UTRAIN=STAND_IN, SBATCH_ACCOUNT="some", SBATCH_OUTPUT=str(directory / "output")))
    return [Job(directory, line.split()[1].rstrip(":"), done.stderr) for line in done.stdout.splitlines()[:-1]]


LONG = {"steps": 10, "seconds": 0.3}  # time to be signalled in


class JobScripts(unittest.TestCase):
    maxDiff = None

    def check(self, job, state, code, restarts):
        self.assertEqual(job.wait().outcome(), (state, code, restarts), job.text())

    def check_continued(self, job, restarts=1):
        self.check(job, "COMPLETED", 0, restarts)
        self.assertEqual(job.steps(), list(range(1, LONG["steps"] + 1)), job.log())

    def test_only_75_is_requeued(self):
        codes = (0, 2, 3, 4, 5, 70, 71, 74)
        jobs = {(launch, code): submit(f"code{code}", launch=launch, ranks=2, steps=1, code=code)
                for code in codes for launch in ("srun", "mpirun")}
        for (launch, code), job in jobs.items():
            with self.subTest(launch=launch, code=code):
                self.check(job, "FAILED" if code else "COMPLETED", code, 0)
                self.assertEqual(job.log().count("start at 0"), 1)

    def test_warning_saves_requeues_and_continues(self):
        jobs = [submit("warned", launch=launch, **LONG) for launch in ("srun", "mpirun")]
        jobs += [submit("warned-" + script, "--nodes=1", "--exclusive=user", script=script + ".sh", **LONG) for script in ("several_nodes", "preemptible")]
        for job in jobs:
            self.assertEqual(job.refusal, "")
            job.wait_for_step()
            slurm.run("scancel", "--signal=USR1", "--batch", job.id)
        early = submit("early", steps=1, check_seconds=4)
        early.wait_until(lambda: early.field("JobState") == "RUNNING", 30, "running")
        time.sleep(1.5)
        slurm.run("scancel", "--signal=USR1", "--batch", early.id)
        self.check(early, "COMPLETED", 0, 1)
        self.assertEqual(early.log(), ["start at 0", "step 1"])
        for job in jobs:
            with self.subTest(job.directory.name):
                self.check_continued(job)
                self.assertEqual([line.split()[1] for line in job.log() if line.startswith("signal")], ["SIGUSR1"])
                self.assertIn("start 1: utrain ended with exit code 75", job.text())
                self.assertIn("start 2: utrain ended with exit code 0", job.text())

    def test_requeues_are_bounded(self):
        job = submit("bounded", steps=1, code=75)
        job.wait_until(lambda: "back in the queue" in job.text(), 30, "requeued")
        self.assertIn("started again 0 times already", self.run_alone("most_requeues=0", SLURM_RESTART_COUNT="0"))
        self.assertIn("back in the queue", self.run_alone("most_requeues=20", SLURM_RESTART_COUNT="19"))
        self.assertIn("started again 20 times already", self.run_alone("most_requeues=20", SLURM_RESTART_COUNT="20"))
        slurm.run("scancel", job.id)

    def run_alone(self, setting, **environment):
        """again() of launch.sh, by itself, with a scontrol that always says yes."""
        lines = f"launch_with=srun; {setting}; source jobs/launch.sh; scontrol() {{ :; }}; again"
        return subprocess.run(["bash", "-c", lines], cwd=ROOT, capture_output=True, text=True,
                              env=dict(slurm.environment, SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_ID="1", **environment)).stdout

    def test_cancelled_stays_cancelled(self):
        job = submit("cancelled", **LONG).wait_for_step()
        slurm.run("scancel", job.id)
        job.wait_until(lambda: "saved; not started again" in job.text() and job.field("ExitCode") == "75:0", 20, "saved")
        self.check(job, "CANCELLED", 75, 0)

    def test_preempted_continues(self):
        job = submit("preempted", "--gpus-per-node=5", script="preemptible.sh", **LONG).wait_for_step()
        urgent = slurm.run("sbatch", "--parsable", "--partition=urgent", "--gpus-per-node=5", "--output=/dev/null", "--wrap=sleep 1")
        self.assertEqual(urgent.returncode, 0, urgent.stderr)
        self.check_continued(job)
        self.assertIn("signal SIGTERM", " ".join(job.log()))

    def test_bad_input_costs_seconds(self):
        begin = time.monotonic()
        job = submit("bad", check=2, steps=1)
        self.check(job, "FAILED", 2, 0)
        self.assertLess(time.monotonic() - begin, 15)
        self.assertEqual(job.log(), [])  # the ranks never started

    def test_placeholder_account_fails(self):
        job = submit("account", "--account=your_account", steps=1)
        self.check(job, "FAILED", 2, 0)
        self.assertIn("set #SBATCH --account", job.text())

    def test_chain_continues_and_cancels_what_is_left(self):
        first, second, *rest = submit_chain("chain", 4, **LONG)
        first.wait_for_step()
        slurm.run("scancel", "--signal=USR1", "--batch", first.id)
        self.check(first, "FAILED", 75, 0)
        self.check(second, "COMPLETED", 0, 0)
        self.assertEqual(second.steps(), list(range(1, LONG["steps"] + 1)), second.log())
        for job in rest:
            self.assertEqual(job.wait().field("JobState"), "CANCELLED")

    def test_chain_ends_with_bad_input(self):
        first, *rest = submit_chain("bad-chain", 3, check=3)
        self.check(first, "FAILED", 3, 0)
        for job in rest:
            self.assertIn(job.wait().field("JobState"), ("CANCELLED", "FAILED"))
        self.assertEqual(first.log(), [])

    def test_chain_goes_on_after_a_hang(self):
        first, second = submit_chain("hang-chain", 2, steps=1, code=70)
        self.check(first, "FAILED", 70, 0)
        self.check(second, "FAILED", 70, 0)


def utrain_arguments(directory, steps, *more):
    return ["input/quickstart.toml", f"--train.max_steps={steps}", "--train.warmup_steps=2", "--eval.every=0", "--data.eval=",
            f"--run.dir={directory}/run", *more]


def steps_in(seconds):
    """How many steps take so long here and now, on two ranks."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["mpirun", *slurm.environment["UTRAIN_MPIRUN_FLAGS"].split(), "-np", "2", "./utrain",
                        *utrain_arguments(directory, 20, "--dry-run=12")],
                       env=slurm.environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lines = (pathlib.Path(directory) / "run/metrics.jsonl").read_text().splitlines()
    return round(seconds * 1000 / statistics.median(json.loads(line)["step_ms"] for line in lines[2:]))


def submit_utrain(name, steps, *flags):
    directory = new_directory(name)
    return submit_program(directory, "./utrain", utrain_arguments(directory, steps), *flags, ranks=2)


def stop_at_limit(steps, ended):
    """Two jobs that have ended: one of them ran through, the other was stopped ahead of its limit and started again."""
    try:
        ended.set_result(whole_and_limited(steps))
    except BaseException as error:
        ended.set_exception(error)


def whole_and_limited(steps):
    whole = submit_utrain("whole", steps, "--time=10")
    # Slurm looks at the limits of jobs every 30 s: this one will have trained for some seconds by then.
    time.sleep((18 - (time.monotonic() - slurm.started)) % 30)
    job = submit_utrain("limited", steps, "--time=1", "--signal=B:USR1@30")
    job.wait_until(lambda: job.field("Restarts") == "1" and job.field("JobState") == "RUNNING", 90, "started again")
    slurm.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=10")
    return whole.wait(120), job.wait(120)


class Utrain(unittest.TestCase):
    def result(self, job):
        """Metrics less their times, adapter."""
        metrics = (job.directory / "run/metrics.jsonl").read_text()
        return (re.sub(r',"(step_ms|tokens_per_second)":[^,}]*', "", metrics),
                (job.directory / "run/adapter/adapter_model.safetensors").read_bytes())

    def test_limit_requeue_and_the_same_curve(self):
        whole, job = limited.result()
        for ended, restarts in ((whole, 0), (job, 1)):
            self.assertEqual(ended.outcome(), ("COMPLETED", 0, restarts), ended.text())
        self.assertIn("start 1: utrain ended with exit code 75", job.text())
        metrics, adapter = self.result(job)
        self.assertEqual((metrics, adapter), self.result(whole))
        n_steps = metrics.count("\n")
        print(f"\njob {job.id}: told to stop ahead of its limit, saved, requeued, finished: {n_steps} lines of metrics and "
              f"{len(adapter)} bytes of adapter equal to those of job {whole.id}, which ran through")

    def test_bad_input_costs_seconds(self):
        directory = new_directory("bad-input")
        (directory / "bad.toml").write_text("[train]\nmax_steps = -1\n")
        job = submit_program(directory, "./utrain", [str(directory / "bad.toml")], ranks=2).wait()
        self.assertEqual(job.outcome(), ("FAILED", 2, 0), job.text())
        self.assertIn("utrain: error:", job.text())
        self.assertNotIn("utrain ended", job.text())  # the check alone was run

    def test_a_bundle_brings_what_it_needs(self):
        unpacked = slurm.directory / "unpacked"
        subprocess.run(["tools/bundle", (ROOT / "utrain").resolve().parent, slurm.directory / "utrain"], cwd=ROOT, check=True,
                       stdout=subprocess.DEVNULL)
        shutil.unpack_archive(slurm.directory / "utrain.tar.xz", unpacked)
        bundle = unpacked / "utrain"
        (bundle / "bin/utrain").rename(bundle / "bin/utrain.itself")
        (bundle / "bin/utrain").write_text('#!/bin/bash\n[[ -n $OMPI_COMM_WORLD_RANK$SLURM_PROCID ]] &&\n'
                                           '  echo "$OPAL_PREFIX ${LD_LIBRARY_PATH%%:*} $(command -v mpirun)"\n'
                                           'exec "$0.itself" "$@"\n')
        (bundle / "bin/utrain").chmod(0o755)
        for launch in ("srun", "mpirun"):
            with self.subTest(launch):
                directory = new_directory("bundle-" + launch)
                job = submit_program(directory, "", utrain_arguments(directory, 4), ranks=2, launch=launch, submit_in=bundle).wait()
                self.assertEqual(job.outcome(), ("COMPLETED", 0, 0), job.text() + job.refusal)
                own = f"{bundle}/root/usr {bundle}/lib {bundle}/root/usr/bin/mpirun"
                self.assertEqual(job.text().splitlines().count(own), 3, job.text())  # the check, and two ranks
                self.assertEqual((directory / "run/metrics.jsonl").read_text().count('"step"'), 4)


if __name__ == "__main__":
    unittest.main()
