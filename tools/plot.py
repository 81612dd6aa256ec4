"""Plots training runs: loss, evaluation loss, gradient norm and learning rate over the steps, from RUN_DIR/metrics.jsonl."""
import argparse
import json
import math
import os
import sys

import matplotlib

matplotlib.use("Agg")  # needs no display
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of Agg)

from data.command import exit_code  # noqa: E402
from data.errors import BAD_FILE, IO, USAGE, UserError  # noqa: E402
from data.standard_output import write_out  # noqa: E402

PANELS = (("loss", "loss"), ("eval_loss", "evaluation loss"), ("grad_norm", "gradient norm"), ("lr", "learning rate"))


def read_metrics(run_dir):
    """{key: ([step], [value])}: of a step written twice (a run that was continued) the last counts; null is not a number."""
    path = os.path.join(run_dir, "metrics.jsonl") if os.path.isdir(run_dir) else run_dir
    if not os.path.isfile(path):
        raise UserError(USAGE, path, "no such file", "name run directories that hold metrics.jsonl")
    by_key = {key: {} for key, _ in PANELS}
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = int(record["step"])
            for key, values in by_key.items():
                if key in record:
                    values[step] = math.nan if record[key] is None else float(record[key])
        except (ValueError, KeyError, TypeError):
            if number == len(lines):  # a run that is still writing its last line
                break
            raise UserError(BAD_FILE, f"{path}:{number}", "is no object with step and numbers", "mend or remove the line")
    if not by_key["loss"]:
        raise UserError(BAD_FILE, path, "holds no steps yet", "plot it after its first step")
    return {key: (sorted(values), [values[step] for step in sorted(values)]) for key, values in by_key.items()}


def default_output(run_dir):
    directory = run_dir if os.path.isdir(run_dir) else os.path.dirname(run_dir)
    return os.path.join(directory, "plot.png")


def plot(run_dirs, output):
    runs = [(run_dir.rstrip("/"), read_metrics(run_dir)) for run_dir in run_dirs]
    panels = [(key, title) for key, title in PANELS if any(metrics[key][0] for _, metrics in runs)]
    figure, axes = plt.subplots((len(panels) + 1) // 2, 2, figsize=(11, 3.6 * ((len(panels) + 1) // 2)), squeeze=False)
    for axis, (key, title) in zip(axes.flat, panels):
        for name, metrics in runs:
            steps, values = metrics[key]
            axis.plot(steps, values, label=name, linewidth=1.2, marker="o" if len(steps) < 20 else None, markersize=3)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(panels):]:
        axis.set_visible(False)
    axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    try:
        figure.savefig(output, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(IO, output, f"cannot be written ({error})", "name a .png file in a directory that can be written")
    write_out(f"{output}: {len(runs)} run{'s' if len(runs) > 1 else ''}, up to step {max(m['loss'][0][-1] for _, m in runs)}\n",
              f"{output} is written all the same")


def main(argv):
    parser = argparse.ArgumentParser(prog="tools/plot", description="Plot loss, evaluation loss, gradient norm, learning rate.")
    parser.add_argument("run_dir", metavar="RUN_DIR", nargs="+", help="run directories (run.dir), drawn over each other")
    parser.add_argument("-o", "--output", metavar="FILE.png", help="default: plot.png in the first run directory")

    def error(message):
        raise UserError(USAGE, "command line", message, "see tools/plot --help")

    parser.error = error
    parser.print_help = lambda: write_out(parser.format_help(), "check the space where it goes")

    def work():
        arguments = parser.parse_args(argv)
        plot(arguments.run_dir, arguments.output or default_output(arguments.run_dir[0]))

    return exit_code("plot", work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
