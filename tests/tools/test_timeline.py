"""The timeline: which part of a trace is a step, how long streams were busy in it, and traces that are none."""
import contextlib
import io
import json
import os
import tempfile
import unittest

import model_dirs  # noqa: F401  puts tools/ on the path
import timeline


def event(name, stream, begin, duration, rank=0):
    return {"name": name, "ph": "X", "pid": rank, "tid": stream, "ts": begin, "dur": duration, "args": {"bytes": 0}}


class Timeline(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = lambda name: os.path.join(directory.name, name)

    def run_on(self, *traces):
        paths = []
        for rank, events in enumerate(traces):
            paths.append(self.path(f"trace.{rank}.json"))
            with open(paths[-1], "w", encoding="utf-8") as file:
                file.write(events if isinstance(events, str) else json.dumps(events))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = timeline.main([*paths, "-o", self.path("out.png")])
        return code, out.getvalue(), err.getvalue()

    def test_the_last_step_is_between_the_last_two_clips(self):
        step = [event("nvjet_gemm", 7, 0, 500), event("clip_kernel", 7, 500, 100), event("nvjet_gemm", 7, 600, 200),
                event("copy out", 9, 700, 100), event("clip_kernel", 7, 900, 100), event("late", 7, 1000, 50)]
        code, out, _ = self.run_on(step, [event("x", 7, 650, 100, rank=1)])
        self.assertEqual(code, 0)
        self.assertIn("in 0.40 ms", out)
        self.assertIn("rank 0 stream 7  75 %", out)
        self.assertIn("rank 0 stream 9  25 %", out)
        self.assertIn("rank 1 stream 7  25 %", out)
        self.assertTrue(os.path.getsize(self.path("out.png")) > 1000)

    def test_overlapping_events_count_once(self):
        self.assertEqual(timeline.busy([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]), 4)

    def test_kinds(self):
        self.assertEqual([timeline.kind_of(n) for n in ("copy in", "copy out", "attention_forward_kernel", "sum_kernel", "adamw")],
                         ["copy in", "copy out", "attention", "sum over ranks", "other"])

    def test_what_is_no_trace_ends_in_one_line(self):
        for text, expected in (("{", 3), ("[{}]", 3), ("[]", 3)):
            code, _, err = self.run_on(text)
            self.assertEqual(code, expected)
            self.assertEqual(err.count("\n"), 1)


if __name__ == "__main__":
    unittest.main()
