"""Draws the timeline of GPUs as tools/trace/gpu_trace.cpp wrote it: one band for each rank and stream, over the last whole step."""
import argparse
import json
import os
import sys

import matplotlib

matplotlib.use("Agg")  # needs no display
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of Agg)

from data.command import exit_code  # noqa: E402
from data.errors import BAD_FILE, IO, USAGE, UserError  # noqa: E402

# What an event is, by the first of these words that its name holds; all else are operations bound by memory.
KINDS = (("copy in", "copy in", "tab:orange"), ("copy out", "copy out", "tab:red"), ("attention", "attention", "tab:purple"),
         ("product", "gemm nvjet cutlass xmma", "tab:blue"), ("sum over ranks", "sum_kernel nccl", "tab:green"), ("other", "", "tab:gray"))
END_OF_STEP = "clip"  # one such kernel a step


def kind_of(name):
    for kind, words, _ in KINDS:
        if any(word in name for word in ([words] if words.startswith("copy") else words.split())):
            return kind
    return KINDS[-1][0]


def read_trace(path):
    """[(rank, stream, name, begin ms, end ms)]"""
    if not os.path.isfile(path):
        raise UserError(USAGE, path, "no such file", "name the trace.*.json that a traced run wrote")
    try:
        with open(path, encoding="utf-8") as file:
            events = json.load(file)
        return [(e["pid"], e["tid"], e["name"], e["ts"] * 1e-3, (e["ts"] + e["dur"]) * 1e-3) for e in events]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(BAD_FILE, path, f"is no trace ({error})", "trace the run again")


def window_of(events):
    """From the end of the last step but one to the end of the last, as rank 0 has them; everything where there are fewer."""
    ends = sorted(end for rank, _, name, _, end in events if rank == min(e[0] for e in events) and END_OF_STEP in name)
    if len(ends) >= 2:
        return ends[-2], ends[-1]
    return min(e[3] for e in events), max(e[4] for e in events)


def busy(spans):
    """Milliseconds that the spans cover together."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def draw(paths, output, window):
    events = [event for path in paths for event in read_trace(path)]
    if not events:
        raise UserError(BAD_FILE, paths[0], "holds no events", "trace a run that uses a GPU")
    first, last = window_of(events) if window is None else (max(e[4] for e in events) - window, max(e[4] for e in events))
    shown = [e for e in events if e[4] > first and e[3] < last]
    bands = sorted({(rank, stream) for rank, stream, *_ in shown})
    figure, axis = plt.subplots(figsize=(14, 1.2 + 0.42 * len(bands)))
    labels = []
    for place, band in enumerate(bands):
        own = [e for e in shown if e[:2] == band]
        for kind, _, color in KINDS:
            spans = [(b - first, e - b) for _, _, name, b, e in own if kind_of(name) == kind]
            axis.broken_barh(spans, (place - 0.4, 0.8), color=color)
        share = busy([(max(b, first), min(e, last)) for *_, b, e in own]) / (last - first)
        labels.append(f"rank {band[0]} stream {band[1]}  {100 * share:.0f} %")
    axis.set_yticks(range(len(bands)), labels, fontsize="small")
    axis.invert_yaxis()
    axis.set_xlim(0, last - first)
    axis.set_xlabel("ms of the step; % of it that the stream was busy")
    axis.legend([plt.Rectangle((0, 0), 1, 1, color=color) for *_, color in KINDS], [kind for kind, *_ in KINDS], ncols=len(KINDS),
                fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.tight_layout()
    try:
        figure.savefig(output, dpi=130)
    except (OSError, ValueError) as error:
        raise UserError(IO, output, f"cannot be written ({error})", "name a .png file in a directory that can be written")
    print(f"{output}: {len(shown)} events of {len(bands)} streams in {last - first:.2f} ms")
    for label in labels:
        print(f"  {label}")


def main(argv):
    parser = argparse.ArgumentParser(prog="tools/timeline", description="Draw what GPUs did in the last step of a traced run.")
    parser.add_argument("trace", metavar="TRACE.json", nargs="+", help="trace.RANK.json of each rank")
    parser.add_argument("-o", "--output", metavar="FILE.png", default="timeline.png")
    parser.add_argument("--last-ms", type=float, help="the last milliseconds instead of the last step")

    def error(message):
        raise UserError(USAGE, "command line", message, "see tools/timeline --help")

    parser.error = error

    def work():
        arguments = parser.parse_args(argv)
        draw(arguments.trace, arguments.output, arguments.last_ms)

    return exit_code("timeline", work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
