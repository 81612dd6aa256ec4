"""tools/check_adapter, but for PEFT itself: what it reads of a dump, the figures, and what it says where PEFT is missing."""
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

import numpy as np

import model_dirs
import check_adapter
from data.errors import UserError
from data.token_file import write_token_file
from weights.safetensors_file import Tensor, write_file

GOLDEN = os.path.join(model_dirs.ROOT, "tests", "golden", "llama")
MODEL, ADAPTER = os.path.join(GOLDEN, "model"), os.path.join(GOLDEN, "adapter_init")
VOCABULARY = 7


class CheckAdapter(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.data, self.dump = (os.path.join(directory.name, name) for name in ("data.h5", "dump.safetensors"))
        documents = [np.array([1, 2, 3]), np.array([4, 5]), np.array([6, 5, 4, 3])]
        write_token_file(self.data, documents, [np.ones(len(d)) for d in documents], VOCABULARY, {})

    def write_dump(self, values):
        tensors = [Tensor(name, "F32", v.shape, self.dump, 0) for name, v in values.items()]
        write_file(self.dump, tensors, "F32", lambda tensor: [values[tensor.name].astype(np.float32)])

    def run_tool(self, *arguments, logits_of=None):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), \
                unittest.mock.patch("check_adapter.check_environment"), \
                unittest.mock.patch("check_adapter.peft_logits", return_value=logits_of):
            code = check_adapter.main([MODEL, ADAPTER, self.data, self.dump, *arguments])
        return code, out.getvalue(), err.getvalue()

    def test_figures(self):
        def logits_of(ids):
            return np.outer(ids, np.ones(VOCABULARY)).astype(np.float32)

        found = {document: logits_of(ids) for document, ids in ((0, [1, 2, 3]), (2, [6, 5]))}  # document 2 was cut
        found[2][1, 3] += 0.5
        self.write_dump({"loss": np.array(1.0), "grad.logits.1": np.ones(3), **{f"logits.{d}": v for d, v in found.items()}})
        relative = 0.5 / np.sqrt(VOCABULARY * (1 + 4 + 9 + 36 + 25))
        self.assertEqual(self.run_tool(logits_of=logits_of),
                         (0, f"2 documents: largest difference 0.5 of logits up to 6 in size, relative {relative:.2g}, beside PEFT in "
                          "float32\n", ""))

    def test_not_a_number_shows(self):
        difference = check_adapter.Difference()
        for values in ([1.0, 2.0], [np.nan, 2.0], [1.0, 3.0]):
            difference.add(np.array(values), np.array([1.0, 2.0]))
        self.assertTrue(np.isnan(difference.largest) and np.isnan(difference.relative()))

    def test_refusals(self):
        ones = np.ones((3, VOCABULARY))
        for values, code, pattern in (({"loss": np.array(1.0)}, 3, "holds no logits"), ({"logits.3": ones}, 3, r"logits\.3 has "),
                                      ({"logits.1": ones}, 3, r"logits\.1 has shape \[3, 7\]"),
                                      ({"logits.0": np.ones((3, 8))}, 3, r"shape \[3, 8\], PEFT's \[3, 7\]")):
            self.write_dump(values)
            found, out, err = self.run_tool(logits_of=lambda ids: np.ones((len(ids), VOCABULARY)))
            self.assertEqual((found, out), (code, ""), err)
            self.assertRegex(err, rf"^check_adapter: error: [^\n]*{pattern}[^\n]*; [^\n]+\n$")
        os.remove(self.dump)
        self.assertEqual(self.run_tool()[0], 2)

    def test_without_peft(self):
        with self.assertRaisesRegex(UserError, r"no no_such_module found, wanted .*torch.*pip install torch") as caught:
            check_adapter.check_environment(("json", "no_such_module"))
        self.assertEqual(caught.exception.code, 2)
        self.write_dump({"logits.1": np.ones((2, VOCABULARY))})
        tool = os.path.join(model_dirs.ROOT, "tools", "check_adapter")
        # -S: of no environment; "none": no Python at all.
        bare = os.path.join(os.path.dirname(self.dump), "bare")
        with open(bare, "w") as file:
            file.write(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
        os.chmod(bare, 0o700)
        for python in (bare, "/no/such/python"):
            done = subprocess.run([tool, MODEL, ADAPTER, self.data, self.dump], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  timeout=60, env={**os.environ, "PYTHON": python})
            self.assertEqual((done.returncode, done.stdout), (2, b""), done.stderr)
            self.assertRegex(done.stderr.decode(), r"^check_adapter: error: [^\n]*; [^\n]*PYTHON=ENV/bin/python[^\n]*\n$")


if __name__ == "__main__":
    unittest.main()
