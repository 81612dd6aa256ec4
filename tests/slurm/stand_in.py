#!/usr/bin/env python3
"""Behaves towards Slurm as utrain does, in milliseconds: stops at SIGUSR1 or SIGTERM after the step it is in, saves, exits 75,
goes on from there when it is started again, leaves at once at a second signal. Its ranks leave one after the other, as
real ones do. The input file is JSON: dir, steps, seconds (of a step), code (of the end), check and
check_seconds (of --check)."""
import json
import os
import pathlib
import signal
import sys
import time

rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("SLURM_PROCID", "0")))
run = {"steps": 3, "seconds": 0.05, "code": 0, "check": 0, "check_seconds": 0, **json.loads(pathlib.Path(sys.argv[1]).read_text())}
directory = pathlib.Path(run["dir"])
signals = []


def note(line):
    if rank == 0:
        with open(directory / "log", "a") as log:
            log.write(line + "\n")


def stop(number, _):
    signals.append(time.monotonic())
    note(f"signal {signal.Signals(number).name} {signals[-1] - signals[0]:.3f}")
    if signals[-1] - signals[0] > 0.2:  # Slurm and launcher may both hand on one signal
        os._exit(1)


if "--check" in sys.argv:
    time.sleep(run["check_seconds"])
    sys.exit(run["check"])
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, stop)
state = directory / f"state{rank}"
step = int(state.read_text()) if state.exists() else 0
note(f"start at {step}")
while step < run["steps"] and not signals:
    time.sleep(run["seconds"])
    step += 1
    note(f"step {step}")
state.write_text(str(step))
time.sleep(0.2 * rank)
sys.exit(75 if step < run["steps"] else run["code"])
