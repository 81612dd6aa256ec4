"""The commands as a user meets them: formats, what is left out, exit codes, messages, and files that appear whole or not."""
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import unittest.mock

import numpy as np

import model_dirs
import inspect_data
import plot
import prepare
from data.token_file import read_token_file

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


class Commands(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.output = self.path("out.h5")

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, *records, name="in.jsonl"):
        lines = [r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode() for r in records]
        with open(self.path(name), "wb") as file:
            file.write(b"\n".join(lines) + b"\n")
        return self.path(name)

    def run_tool(self, tool, *arguments):
        """In this process, as the imports are most of a command's time; test_front_scripts starts real ones."""
        main = {"prepare": prepare.main, "inspect": inspect_data.main, "plot": plot.main}[tool]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([str(a) for a in arguments])
            except SystemExit as leaving:  # --help
                code = leaving.code
        return code, out.getvalue(), err.getvalue()

    def prepare(self, *records, model=model_dirs.TINY_LLAMA, options=()):
        return self.run_tool("prepare", model, self.write(*records), self.output, *options)

    def documents(self, *records, model=model_dirs.TINY_LLAMA, options=()):
        """[(text, text of the targets)] of the file made from the records."""
        code, _, err = self.prepare(*records, model=model, options=options)
        self.assertEqual(code, 0, err)
        data = read_token_file(self.output)
        tokenizer = model_dirs.Tokenizer.from_file(os.path.join(model, "tokenizer.json"))

        def text(ids):
            return tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

        pairs = [data.document(i) for i in range(data.documents())]
        return [(text(ids), text(ids[mask == 1])) for ids, mask in pairs]

    def refused(self, code, pattern, *records, **options):
        got, _, err = self.prepare(*records, **options)
        self.assertEqual(got, code, err)
        last = err.strip().splitlines()[-1]
        self.assertRegex(last, r"^prepare: error: .+: .+; .+")
        self.assertRegex(last, pattern)
        self.assertEqual([f for f in os.listdir(self.directory) if f.startswith("out.h5")], [])

    def test_formats(self):
        chat = ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n", "b<|im_end|>")
        parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}]
        with_input = ("<|im_start|>user\na\n\nx<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n", "b<|im_end|>")
        for record, expected in (
                (CHAT, chat), ({"messages": parts}, chat),
                ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, chat),
                ({"conversations": CHAT["messages"]}, chat),
                ({"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]}, chat),
                ({"prompt": "a game of ", "completion": "chess"}, ("a game of chess<|im_end|>", " chess<|im_end|>")),
                ({"instruction": "a", "output": "b"}, chat), ({"instruction": "a", "input": "", "output": "b"}, chat),
                ({"instruction": "a", "input": "x", "output": "b"}, with_input),
                ({"text": "chess"}, ("chess<|im_end|>", "s<|im_end|>"))):
            with self.subTest(record=record):
                self.assertEqual(self.documents(record), [expected])

    def test_alpaca_without_template(self):
        model = model_dirs.make_model_dir(self.path("m"), None)
        (text, targets), = self.documents({"instruction": "Add.", "input": "1 2", "output": "3"}, model=model)
        self.assertTrue(text.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3<|im_end|>"), text)
        self.assertEqual(targets, "3<|im_end|>")

    def test_file_layout(self):
        self.documents(CHAT, CHAT)
        data = read_token_file(self.output)
        self.assertEqual([str(a.dtype) for a in data[:3]], ["uint16", "int64", "uint8"])
        self.assertEqual((data.attributes["format_version"], data.attributes["vocab_size"]), (1, 4096))
        with open(self.path("in.jsonl"), "rb") as file:
            self.assertEqual(data.attributes["source_sha256"], hashlib.sha256(file.read()).hexdigest())
        large = model_dirs.make_model_dir(self.path("m"), model_dirs.CHATML, vocab_size=128256)
        self.documents(CHAT, model=large)
        self.assertEqual(str(read_token_file(self.output).tokens.dtype), "uint32")

    def test_equal_inputs_give_equal_bytes(self):
        hashes = set()
        for _ in range(2):
            self.documents(CHAT, {"messages": CHAT["messages"] * 2})
            with open(self.output, "rb") as file:
                hashes.add(file.read())
            time.sleep(1.1)  # longer than a time stamp's second
        self.assertEqual(len(hashes), 1)

    def test_shipped_data_are_what_prepare_makes(self):
        data = os.path.join(model_dirs.ROOT, "input", "data")
        for split in ("train", "eval"):
            code, _, err = self.run_tool("prepare", model_dirs.TINY_LLAMA, os.path.join(data, f"definitions_{split}.jsonl"),
                                         self.output)
            self.assertEqual((code, err), (0, ""))
            made, shipped = read_token_file(self.output), read_token_file(os.path.join(data, f"definitions_{split}.h5"))
            for ours, theirs in zip(made[:3], shipped[:3]):
                self.assertTrue(np.array_equal(ours, theirs))
            self.assertEqual(made.attributes, shipped.attributes)

    def test_report(self):
        code, out, err = self.prepare(CHAT, {"messages": [{"role": "user", "content": "<|im_end|>\x1b[2J"}, CHAT["messages"][1]]})
        self.assertEqual(code, 0)
        self.assertIn("<|im_start|>assistant\n[[b<|im_end|>]]\n", out)
        self.assertRegex(out, r"documents +2\n")
        self.assertIn("1 records hold text that spells a special token", err)

    def test_bad_records_are_left_out_and_shown(self):
        bad = [{"messages": []}, {"messages": [{"role": "wizard", "content": "a"}]}, {"messages": CHAT["messages"][:1]},
               {"messages": [{"role": "assistant", "content": None}]}, {"messages": [{"role": "assistant", "content": "\ud800"}]},
               {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, {"other": 1}]
        code, out, err = self.prepare(CHAT, "", *bad)
        self.assertEqual(code, 0)
        self.assertRegex(out, r"documents +1\n")
        self.assertIn("7 bad records left out", err)
        self.assertRegex(err, r"in\.jsonl:4: .*'wizard'")
        self.assertIn("and 2 more", err)

    def test_refused_rows_are_counted(self):
        model = model_dirs.make_model_dir(self.path("m"), model_dirs.GEMMA, bos="<s>", eos="<end_of_turn>")
        code, _, err = self.prepare(CHAT, {"messages": [{"role": "system", "content": "s"}] + CHAT["messages"]}, model=model)
        self.assertEqual(code, 0)
        self.assertIn("1 records refused", err)
        self.assertIn("in.jsonl:2: the chat template refuses it: no system role", err)

    def test_never_learns_to_stop(self):
        bare = model_dirs.make_model_dir(self.path("m"), model_dirs.BARE)
        self.assertIn("NO REPLY ENDS", self.prepare(CHAT, model=bare)[2])
        no_eos = model_dirs.make_model_dir(self.path("n"), None, eos=None)
        self.assertIn("NO EOS", self.prepare({"text": "hockey"}, model=no_eos)[2])

    def test_too_long(self):
        records = [{"text": "hockey " * n} for n in (1, 30, 3, 20)]
        lengths = [len(d) for d, _ in self.documents(*records)]
        self.assertEqual(len(lengths), 4)
        os.remove(self.output)
        self.refused(3, r"in\.jsonl:2: 2 of 4 documents are longer than --max-len 20, this one the longest", *records,
                     options=("--max-len", 20))
        self.assertEqual(len(self.documents(*records, options=("--max-len", 20, "--too-long", "drop"))), 2)
        self.documents(*records, options=("--max-len", 20, "--too-long", "truncate"))
        data = read_token_file(self.output)
        self.assertEqual([data.offsets[i + 1] - data.offsets[i] for i in (1, 3)], [20, 20])
        code, _, err = self.prepare(CHAT, {"messages": [{"role": "user", "content": "a " * 99}, CHAT["messages"][1]]},
                                    options=("--max-len", 30, "--too-long", "truncate"))
        self.assertEqual(code, 0)
        self.assertIn("1 documents dropped: without a target", err)

    def test_bad_input_files(self):
        self.refused(3, r"in\.jsonl:2: is no JSON", CHAT, '{"messages": [')
        self.refused(3, r"in\.jsonl:1: is no JSON object", "[1]")
        self.refused(3, r"in\.jsonl:2: is no UTF-8", CHAT, b'{"text": "\xff"}')
        self.refused(3, r"in\.jsonl:1: is no JSON", "[" * 100000)
        self.refused(3, r"holds no records", "", " ")
        self.refused(3, r"in\.jsonl:2: is of format text", CHAT, {"text": "a"})
        self.refused(3, r"in\.jsonl:1: no known format", {"x": 1})
        self.refused(3, r"no record gives a document with targets", {"messages": []})

    def test_usage(self):
        self.refused(2, "--max-len is 1", CHAT, options=("--max-len", 1))
        self.refused(2, "invalid choice", CHAT, options=("--format", "xml"))
        self.refused(2, "no such directory", CHAT, model=self.path("none"))
        self.refused(2, "no chat template", CHAT, model=model_dirs.make_model_dir(self.path("m"), None))
        self.assertEqual(self.run_tool("prepare", model_dirs.TINY_LLAMA, self.path("none"), self.output)[0], 2)
        self.assertEqual(self.run_tool("prepare", model_dirs.TINY_LLAMA, self.write(CHAT), self.path("none/out.h5"))[0], 2)
        self.assertEqual(self.run_tool("prepare")[0], 2)
        self.assertEqual(self.run_tool("prepare", "--help")[0], 0)

    def test_bad_models(self):
        def model(**files):
            path = self.path("m")
            shutil.rmtree(path, ignore_errors=True)
            model_dirs.make_model_dir(path, model_dirs.CHATML)
            for name, content in files.items():
                file = os.path.join(path, name.replace("_json", ".json").replace("_jinja", ".jinja"))
                os.remove(file)
                if content is not None:
                    with open(file, "w", encoding="utf-8") as stream:
                        stream.write(content)
            return path

        self.refused(2, "tokenizer.json: no such file", CHAT, model=model(tokenizer_json=None))
        self.refused(2, "config.json: no such file", CHAT, model=model(config_json=None))
        self.refused(3, "tokenizer.json: is no tokenizer", CHAT, model=model(tokenizer_json="{}"))
        self.refused(3, "config.json: is no JSON", CHAT, model=model(config_json="{"))
        self.refused(3, "config.json: vocab_size is None", CHAT, model=model(config_json="{}"))
        self.refused(3, r"chat_template\.jinja:2: the chat template is no valid Jinja", CHAT,
                     model=model(chat_template_jinja="a\n{% for %}"))
        self.refused(3, r"token id \d+, but vocab_size of config.json is 300", CHAT, model=model(config_json='{"vocab_size": 300}'))
        self.refused(3, "no template named", CHAT, model=model(
            chat_template_jinja=None, tokenizer_config_json='{"chat_template": [{"name": "rag", "template": ""}]}'))
        named = [{"name": "rag", "template": ""}, {"name": "default", "template": model_dirs.CHATML}]
        path = model(chat_template_jinja=None, tokenizer_config_json=json.dumps({"chat_template": named}))
        self.assertEqual(self.documents(CHAT, model=path)[0][1], "b<|im_end|>")

    def test_output_that_cannot_be_written(self):
        os.mkdir(self.path("sub"))
        os.chmod(self.path("sub"), 0o500)
        if os.access(self.path("sub"), os.W_OK):
            self.skipTest("root may write everywhere")
        code, _, err = self.run_tool("prepare", model_dirs.TINY_LLAMA, self.write(CHAT), self.path("sub/out.h5"))
        self.assertEqual(code, 74, err)

    def test_interrupted(self):
        def terminate(*_, **__):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        for place in ("prepare.encode", "h5py.Group.create_dataset"):
            with self.subTest(place=place), unittest.mock.patch(place, terminate):
                code, _, err = self.prepare(CHAT)
            self.assertEqual((code, err), (130, "prepare: stopped; nothing was written\n"))
            self.assertEqual(os.listdir(self.directory), ["in.jsonl"])

    def test_front_scripts(self):
        """From another directory, through a link, with a module of the user's that shadows one of ours."""
        self.write("raise SystemExit('wrong module')", name="json.py")
        os.symlink(os.path.join(model_dirs.ROOT, "tools", "prepare"), self.path("link"))
        for command, code in (([self.path("link"), model_dirs.TINY_LLAMA, self.write(CHAT), "out.h5"], 0),
                              ([os.path.join(model_dirs.ROOT, "tools", "inspect"), "out.h5", model_dirs.TINY_LLAMA], 0),
                              ([os.path.join(model_dirs.ROOT, "tools", "plot"), "none"], 2)):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.directory, timeout=60,
                                  env={**os.environ, "PYTHONPATH": self.directory})
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertNotIn(b"Traceback", done.stderr)
        tools = self.path("tools")
        os.mkdir(tools)
        shutil.copy(os.path.join(model_dirs.ROOT, "tools", "prepare"), tools)
        done = subprocess.run([os.path.join(tools, "prepare")], stderr=subprocess.PIPE, timeout=60)
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr.decode(), r"^prepare: error: .*; make it with: make tools\n$")

    def test_inspect(self):
        self.documents(CHAT, CHAT)
        code, out, _ = self.run_tool("inspect", self.output, model_dirs.TINY_LLAMA, "--document", 1)
        self.assertEqual(code, 0)
        self.assertIn("--- document 1: ", out)
        self.assertIn("[[b<|im_end|>]]", out)
        self.assertIn("vocab_size = 4096", out)
        self.assertEqual(self.run_tool("inspect", self.output, model_dirs.TINY_LLAMA, "--document", 2)[0], 2)
        self.assertEqual(self.run_tool("inspect", self.path("none"), model_dirs.TINY_LLAMA)[0], 2)
        self.assertEqual(self.run_tool("inspect", self.path("in.jsonl"), model_dirs.TINY_LLAMA)[0], 3)
        other = model_dirs.make_model_dir(self.path("m"), model_dirs.CHATML)
        self.assertIn("another tokenizer", self.run_tool("inspect", self.output, other)[2])

    def test_plot(self):
        os.mkdir(self.path("run"))
        steps = [{"step": i, "loss": 3 / i, "grad_norm": None if i == 2 else 1.0, "lr": 0.1} for i in (1, 2, 3)]
        self.write(*steps, {"step": 3, "eval_loss": 2.0}, name="run/metrics.jsonl")
        with open(self.path("run/metrics.jsonl"), "a") as file:
            file.write('{"step": 4, "lo')  # still being written
        code, out, err = self.run_tool("plot", self.path("run"), self.path("run/metrics.jsonl"), "-o", self.path("p.png"))
        self.assertEqual((code, err), (0, ""))
        self.assertIn("2 runs, up to step 3", out)
        with open(self.path("p.png"), "rb") as file:
            self.assertEqual(file.read(4), b"\x89PNG")
        for run in ("run", "run/metrics.jsonl"):
            code, out, err = self.run_tool("plot", self.path(run))
            self.assertEqual((code, err), (0, ""))
            self.assertIn(self.path("run/plot.png") + ": 1 run,", out)
            os.remove(self.path("run/plot.png"))
        self.assertEqual(self.run_tool("plot", self.path("none"))[0], 2)
        self.write("x", *steps, name="bad.jsonl")
        self.assertEqual(self.run_tool("plot", self.path("bad.jsonl"))[0], 3)

    def test_output_that_takes_nothing(self):
        source = self.write(CHAT)
        self.prepare(CHAT)
        os.mkdir(self.path("run"))
        self.write({"step": 1, "loss": 3.0}, name="run/metrics.jsonl")
        for tool, arguments, written in (("prepare", [model_dirs.TINY_LLAMA, source, self.output], self.output),
                                         ("inspect_data", [self.output, model_dirs.TINY_LLAMA], None),
                                         ("plot", [self.path("run")], self.path("run/plot.png"))):
            command = " ".join([sys.executable, os.path.join(model_dirs.ROOT, "tools", f"{tool}.py"), *arguments])
            for where, code, pattern in ((">/dev/full", 74, "error: standard output: .+; .+\n$"), (">&-", 74, "error: standard output"),
                                         ("| true", 0, "^$")):
                if written and os.path.exists(written):
                    os.remove(written)
                done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{command} {where}"], stderr=subprocess.PIPE, timeout=60)
                with self.subTest(tool=tool, where=where):
                    self.assertEqual(done.returncode, code, done.stderr)
                    self.assertRegex(done.stderr.decode(), pattern)
                    self.assertEqual(len(done.stderr.splitlines()), 1 if code else 0)
                    self.assertTrue(written is None or os.path.exists(written))


if __name__ == "__main__":
    unittest.main()
