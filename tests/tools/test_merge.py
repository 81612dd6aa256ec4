"""tools/merge: what it writes against ./utrain with the adapter, its rounding against float64, and what it refuses."""
import contextlib
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
import merge
from weights import safetensors_file
from weights.model_files import read_model_weights
from weights.safetensors_file import Tensor, from_float32, read_header, read_rows, to_float32, write_file

GOLDEN = os.path.join(model_dirs.ROOT, "tests", "golden")
BINARY = os.environ.get("UTRAIN_BINARY", os.path.join(model_dirs.ROOT, "build", "cpu", "utrain"))
LLAMA = os.path.join(GOLDEN, "llama", "model")
ADAPTER = os.path.join(GOLDEN, "llama", "adapter_init")
LORA_CASES = sorted(case for case in os.listdir(GOLDEN) if os.path.isdir(os.path.join(GOLDEN, case, "adapter_init")))
MAX_LOGIT_ERROR = 2e-5  # as kGoldenLogits of tests/tolerance.h


def values_of(path, name=None):
    """{name: float32 array} of a safetensors file, or one of its arrays."""
    def read(tensor):
        return to_float32(read_rows(tensor, 0, tensor.rows()), tensor.dtype).reshape(tensor.shape)

    header = read_header(path, "-")
    return read(header[name]) if name else {n: read(t) for n, t in header.items()}


def model_values(directory):
    return {name: to_float32(read_rows(t, 0, t.rows()), t.dtype).reshape(t.shape)
            for name, t in read_model_weights(directory).items()}


def write_tensors(path, values, dtype="F32"):
    tensors = [Tensor(name, dtype, np.shape(v), path, 0) for name, v in values.items()]
    write_file(path, tensors, dtype, lambda t: [from_float32(np.asarray(values[t.name], np.float32), dtype)])


class Merge(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.out = self.path("out")

    def path(self, name):
        return os.path.join(self.directory, name)

    def run_tool(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = merge.main([str(a) for a in arguments])
        return code, out.getvalue(), err.getvalue()

    def merged(self, *options, model=LLAMA, adapter=ADAPTER):
        code, out, err = self.run_tool(model, adapter, self.out, *options)
        self.assertEqual((code, err), (0, ""))
        return out

    def refused(self, code, pattern, model=LLAMA, adapter=ADAPTER, out=None, options=()):
        before = sorted(os.listdir(self.directory))
        got, _, err = self.run_tool(model, adapter, out or self.out, *options)
        self.assertEqual(got, code, err)
        self.assertRegex(err, r"^merge: error: .+: .+; .+\n$")
        self.assertRegex(err, pattern)
        self.assertEqual(sorted(os.listdir(self.directory)), before)

    def copy(self, source, name, **changes):
        """A copy of a directory, with keys of its *config.json set."""
        shutil.copytree(source, self.path(name), dirs_exist_ok=True)
        file = self.path(os.path.join(name, "adapter_config.json" if "adapter" in os.path.basename(source) else "config.json"))
        with open(file, encoding="utf-8") as stream:
            config = {**json.load(stream), **changes}
        model_dirs.write_json(file, config)
        return self.path(name)

    def adapter_with(self, change, **config):
        """A copy of the adapter whose {name: values} went through `change`."""
        adapter = self.copy(ADAPTER, "adapter", **config)
        file = os.path.join(adapter, "adapter_model.safetensors")
        values = values_of(file)
        change(values)
        write_tensors(file, values)
        return adapter

    def dump(self, case, model, *options):
        with open(os.path.join(GOLDEN, case, "case.json"), encoding="utf-8") as file:
            documents = json.load(file)["data"]["documents"]
        with open(self.path("input.toml"), "w", encoding="utf-8") as file:
            file.write(f'[model]\npath = "{model}"\ndtype = "float32"\n'
                       f'[data]\ntrain = "{GOLDEN}/{case}/tokens.h5"\nseq_len = 64\nshuffle = false\n'
                       f'[train]\nmax_steps = 10\nglobal_batch_size = {documents}\n[run]\ndir = "{self.path("run")}"\n')
        done = subprocess.run([BINARY, self.path("input.toml"), "--dump", self.path("dump"), *options], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.assertEqual(done.returncode, 0, done.stdout.decode())
        return {name: values for name, values in values_of(self.path("dump")).items() if name.startswith("logits.")}

    @unittest.skipUnless(os.path.exists(BINARY), f"{BINARY} is not built")
    def test_utrain_sees_the_same_model(self):
        """Logits of base + adapter are those of the merged model with a fresh adapter, whose B is 0."""
        for case in LORA_CASES:
            with self.subTest(case=case):
                base, adapter = (os.path.join(GOLDEN, case, name) for name in ("model", "adapter_init"))
                self.merged("--dtype", "float32", "--overwrite", model=base, adapter=adapter)
                wanted = self.dump(case, base, f"--lora.init_from={adapter}")
                found = self.dump(case, self.out)
                untrained = self.dump(case, base)
                self.assertEqual(sorted(found), sorted(wanted))
                error = max(np.abs(found[name] - wanted[name]).max() for name in wanted)
                self.assertLessEqual(error, MAX_LOGIT_ERROR)
                # The adapter matters, so that equality says something.
                self.assertGreater(max(np.abs(untrained[name] - wanted[name]).max() for name in wanted), 100 * MAX_LOGIT_ERROR)

    def test_values(self):
        """One rounding of W + scaling * B A, for each dtype; what has no adapter keeps its value."""
        case = os.path.join(GOLDEN, "llama_bias_rslora")
        base = model_values(os.path.join(case, "model"))
        adapter = values_of(os.path.join(case, "adapter_init/adapter_model.safetensors"))
        for dtype, unit in (("float32", 2.0**-24), ("bfloat16", 2.0**-8), ("float16", 2.0**-11)):
            with self.subTest(dtype=dtype):
                self.merged("--dtype", dtype, "--overwrite", model=os.path.join(case, "model"),
                            adapter=os.path.join(case, "adapter_init"))
                found = model_values(self.out)
                self.assertEqual(list(found), list(base))
                merged = 0
                for name, values in base.items():
                    module = f"base_model.model.{name[:-len('.weight')]}"
                    wanted, slack = values.astype(np.float64), 2.0**-24
                    if module + ".lora_A.weight" in adapter:
                        a, b = (adapter[f"{module}.lora_{which}.weight"].astype(np.float64) for which in "AB")
                        wanted, slack = wanted + 9 / np.sqrt(6) * (b @ a), 2.0**-20
                        merged += 1
                    self.assertLessEqual(np.max(np.abs(found[name] - wanted) / (np.abs(wanted) + 1e-2)), unit + slack, name)
                self.assertEqual(merged, 14)
                self.assertEqual(read_model_weights(self.out)["lm_head.weight"].dtype, merge.DTYPES[dtype])

    def test_rounding(self):
        """To nearest, ties to even: exactly what is between two neighbours goes to the even one."""
        bits = np.arange(1 << 16, dtype=np.uint32)
        finite = bits[(bits & 0x7F80) != 0x7F80]
        below = finite << 16
        for offset, up in ((0, 0), (1, 0), (0x7FFF, 0), (0x8000, finite & 1), (0x8001, 1), (0xFFFF, 1)):
            found = from_float32((below + offset).astype(np.uint32).view(np.float32), "BF16")
            np.testing.assert_array_equal(found, finite + up)
        np.testing.assert_array_equal(to_float32(finite.astype(np.uint16), "BF16").view(np.uint32), below)

    def test_blocks_are_the_whole(self):
        self.merged("--dtype", "float32")
        whole = model_values(self.out)
        with unittest.mock.patch.object(safetensors_file, "BLOCK_ELEMENTS", 300):
            self.merged("--dtype", "float32", "--overwrite")
        for name, values in model_values(self.out).items():
            np.testing.assert_allclose(values, whole[name], rtol=0, atol=1e-6)

    def test_shards(self):
        self.merged("--max-shard-size", "100KB")
        shards = sorted(f for f in os.listdir(self.out) if f.endswith(".safetensors"))
        self.assertEqual(shards, [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)])
        self.assertGreater(len(shards), 2)
        with open(os.path.join(self.out, "model.safetensors.index.json"), encoding="utf-8") as file:
            index = json.load(file)
        total = 0
        for shard in shards:
            tensors = read_header(os.path.join(self.out, shard), "-")
            size = sum(t.rows() * t.row_elements() * 2 for t in tensors.values())
            self.assertLessEqual(size, 100_000)
            self.assertEqual(sorted(tensors), sorted(n for n, f in index["weight_map"].items() if f == shard))
            total += size
        self.assertEqual(index["metadata"]["total_size"], total)
        sharded = model_values(self.out)
        # A sharded base is read as well.
        again = self.path("again")
        self.assertEqual(self.run_tool(self.out, ADAPTER, again, "--dtype", "float32")[0], 0)
        self.assertEqual(sorted(model_values(again)), sorted(sharded))
        self.merged("--overwrite")
        self.assertEqual(sorted(os.listdir(self.out)), ["config.json", "generation_config.json", "model.safetensors"])
        for name, values in model_values(self.out).items():
            np.testing.assert_array_equal(values, sharded[name])

    def test_other_files(self):
        model = self.copy(LLAMA, "m", torch_dtype="float32")
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE", "merges.txt",
                     "pytorch_model.bin", "README.md"):
            with open(os.path.join(model, name), "w", encoding="utf-8") as file:
                file.write(name)
        out = self.merged(model=model)
        self.assertRegex(out, r"out: 21 tensors, 14 of them merged \(r = 8, scaling = 2\), bfloat16, 266,880 bytes in 1 file, ")
        self.assertEqual(sorted(os.listdir(self.out)), [
            "LICENSE", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt", "model.safetensors",
            "tokenizer.json", "tokenizer_config.json"])
        with open(os.path.join(self.out, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        self.assertEqual((config["torch_dtype"], config["dtype"]), ("bfloat16", "bfloat16"))
        with open(os.path.join(model, "config.json"), encoding="utf-8") as file:
            self.assertEqual({**json.load(file), "torch_dtype": "bfloat16", "dtype": "bfloat16"}, config)
        adapter = self.copy(ADAPTER, "adapter")
        with open(os.path.join(adapter, "tokenizer.json"), "w", encoding="utf-8") as file:
            file.write("another")
        code, _, err = self.run_tool(model, adapter, self.out, "--overwrite")
        self.assertEqual(code, 0)
        self.assertRegex(err, "merge: warning: .*another tokenizer")

    def test_refused_adapters(self):
        for key, value in (("fan_in_fan_out", True), ("modules_to_save", ["lm_head"]), ("bias", "all"), ("use_dora", True),
                           ("rank_pattern", {"q_proj": 4}), ("alpha_pattern", {"q_proj": 4}), ("init_lora_weights", "pissa"),
                           ("lora_bias", True), ("layer_replication", [[0, 2]]), ("peft_type", "LOHA"), ("r", 0), ("r", "8"),
                           ("lora_alpha", None), ("target_modules", []), ("of_a_later_peft", 1)):
            with self.subTest(key=key):
                self.refused(3, f"{key} is ", adapter=self.copy(ADAPTER, "adapter", **{key: value}))
        self.refused(3, "with r = 4", adapter=self.copy(ADAPTER, "adapter", r=4))
        first = "base_model.model.model.layers.0.self_attn.q_proj.lora_"

        def rename(values):
            values["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = values.pop(first + "A.weight")
            values["base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight"] = values.pop(first + "B.weight")

        def diverge(values):
            values[first + "B.weight"][0, 0] = np.nan

        for change, pattern in (
                (rename, "layers.9.self_attn.q_proj.weight found, which the model does not have"),
                (lambda v: v.pop(first + "A.weight"), "has lora_B alone"),
                (lambda v: [v.pop(first + w) for w in ("A.weight", "B.weight")], r"no adapter of .*\(1 in all\)"),
                (lambda v: v.update({first + "B.weight": v[first + "B.weight"].T}), r"the adapter has B \[8, 64\]"),
                (lambda v: v.update({first + "magnitude_vector": v.pop(first + "B.weight")}), "magnitude_vector found"),
                (lambda v: v.clear(), "holds no tensor"),
                (diverge, "not finite")):
            shutil.rmtree(self.path("adapter"))
            with self.subTest(pattern=pattern):
                self.refused(3, pattern, adapter=self.adapter_with(change))
        self.refused(3, "target_modules does not name", adapter=self.copy(ADAPTER, "adapter_2", target_modules=["q_proj"]))
        self.refused(2, "no such directory", adapter=self.path("none"))
        os.makedirs(self.path("run"))
        shutil.copytree(ADAPTER, self.path("run/adapter"))
        self.refused(2, "name .*run/adapter", adapter=self.path("run"))
        os.remove(self.path("run/adapter/adapter_model.safetensors"))
        self.refused(3, "no adapter_model.safetensors", adapter=self.path("run/adapter"))

    def test_layers_without_an_adapter(self):
        def drop(values):
            for name in [name for name in values if ".layers.0." in name]:
                del values[name]

        self.merged("--dtype", "float32", adapter=self.adapter_with(drop, layers_to_transform=[1]))
        base, found = model_values(LLAMA), model_values(self.out)
        for name, values in base.items():
            same = np.array_equal(values, found[name])
            self.assertEqual(same, ".layers.1." not in name or "proj" not in name, name)

    def test_refused_models(self):
        self.refused(2, "no such directory", model=self.path("none"))
        self.refused(3, "quantization_config", model=self.copy(LLAMA, "m", quantization_config={"bits": 4}))
        model = self.copy(LLAMA, "model")
        weights = os.path.join(model, "model.safetensors")
        with open(weights, "rb") as file:
            whole = file.read()
        meta = whole.replace(b'{"format":"pt"}', b'5              ')
        for content, pattern in ((whole[:-4], "has bytes"), (whole + b"tail", "4 bytes found after the last tensor"),
                                 (meta, "__metadata__"), (whole.replace(b'[320,64]', b'[32.,64]').replace(b"32.", b"3.0"), "no list"),
                                 (whole.replace(b"layers.1.mlp.up_p", b"layers.1.mlp.up\\n"), r"up\\\\?n"), (whole[:100], "no whole safetensors file"), (b"", "0 bytes"),
                                 (whole[:8] + b"[" + whole[9:], "damaged"), (whole.replace(b'"F32"', b'"I32"'), "I32"),
                                 (whole.replace(b"[320,64]", b"[320,65]"), "its shape takes"),
                                 (whole.replace(b"layers.1.mlp.up_proj", b"layers.0.mlp.up_proj"), "stands twice")):
            self.assertNotEqual(content, whole)
            with open(weights, "wb") as file:
                file.write(content)
            with self.subTest(pattern=pattern):
                self.refused(3, pattern, model=model)
        os.remove(weights)
        self.refused(2, "no index of shards", model=model)
        with open(os.path.join(model, "pytorch_model.bin"), "w"):
            pass
        self.refused(3, "pickled", model=model)
        model_dirs.write_json(os.path.join(model, "model.safetensors.index.json"), {"weight_map": {"a": "../x.safetensors"}})
        self.refused(3, "names the shard", model=model)
        values = model_values(LLAMA)
        del values["lm_head.weight"]
        write_tensors(weights, values)
        self.refused(3, "no lm_head.weight", model=model)

    def test_tensor_without_elements(self):
        model, values = self.copy(LLAMA, "model"), model_values(LLAMA)
        tensors = [Tensor(name, "F32", v.shape, "", 0) for name, v in values.items()] + [Tensor("none", "F32", (1 << 62, 0), "", 0)]
        write_file(os.path.join(model, "model.safetensors"), tensors, "F32", lambda t: [values[t.name]] if t.name in values else [])
        self.merged(model=model)
        self.assertEqual(read_model_weights(self.out)["none"].shape, (1 << 62, 0))

    def test_numbers_too_large(self):
        for key, value in (("r", 10**400), ("lora_alpha", 10**400), ("lora_alpha", 1e300)):
            self.refused(3, f"{key} is 1", adapter=self.copy(ADAPTER, "adapter", **{key: value}))
        self.refused(2, "max-shard-size", options=("--max-shard-size=" + "9" * 400,))
        code, _, err = self.run_tool(LLAMA, ADAPTER, "")
        self.assertEqual(code, 2)
        self.assertIn("OUT_DIR is empty", err)

    def test_output_that_takes_nothing(self):
        command = f"{sys.executable} {os.path.join(model_dirs.ROOT, 'tools', 'merge.py')} {LLAMA} {ADAPTER} {self.out} --overwrite"
        for where, code, pattern in ((">/dev/full", 74, "is written all the same\n$"), ("| true", 0, "^$")):
            done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{command} {where}"], stderr=subprocess.PIPE, timeout=60)
            with self.subTest(where=where):
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertRegex(done.stderr.decode(), pattern)
                self.assertEqual(len(done.stderr.splitlines()), 1 if code else 0)
                self.assertEqual(os.listdir(self.directory), ["out"])

    def test_too_large_for_float16(self):
        model = self.copy(LLAMA, "model")
        values = model_values(model)
        values["model.norm.weight"][3] = 7e4
        write_tensors(os.path.join(model, "model.safetensors"), values)
        self.refused(3, "model.norm.weight would hold numbers that are not finite; choose --dtype bfloat16", model=model,
                     options=("--dtype", "float16"))
        self.merged(model=model)

    def test_out_dir(self):
        os.mkdir(self.out)
        self.merged()
        self.refused(2, "is not empty")
        digest = merge.sha256_of_file(os.path.join(self.out, "model.safetensors"))
        self.refused(3, "adapter_config", adapter=self.copy(ADAPTER, "adapter", use_dora=True), options=("--overwrite",))
        self.assertEqual(merge.sha256_of_file(os.path.join(self.out, "model.safetensors")), digest)
        os.mkdir(self.path("home"))
        with open(self.path("home/letter.txt"), "w"):
            pass
        self.refused(2, "something else than a model", out=self.path("home"), options=("--overwrite",))
        self.refused(2, "is a file", out=self.path("home/letter.txt"))
        self.refused(2, "no such directory", out=self.path("none/out"))
        model = self.copy(LLAMA, "model")
        self.refused(2, "is or holds MODEL_DIR", model=model, out=model, options=("--overwrite",))
        self.refused(2, "is or holds MODEL_DIR", model=model, out=self.directory, options=("--overwrite",))
        for size in ("0", "5XB", "-1GB"):
            self.refused(2, "max-shard-size", options=(f"--max-shard-size={size}",))

    def test_interrupted(self):
        self.merged()
        before = sorted(os.listdir(self.directory))

        def terminate(*_, **__):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        for place in ("merge.from_float32", "merge.copy_files"):
            with self.subTest(place=place), unittest.mock.patch(place, terminate):
                code, _, err = self.run_tool(LLAMA, ADAPTER, self.out, "--overwrite")
            self.assertEqual((code, err), (130, "merge: stopped; nothing was written\n"))
            self.assertEqual(sorted(os.listdir(self.directory)), before)
        with unittest.mock.patch("merge.shutil.disk_usage", return_value=unittest.mock.Mock(free=1000)):
            self.refused(74, "are free there", out=self.path("other"))

    def test_memory_is_that_of_blocks(self):
        """A tensor of 256 MB takes far less: the process that merges it stays below."""
        model = self.copy(LLAMA, "model", tie_word_embeddings=True)
        adapter = self.copy(ADAPTER, "adapter", target_modules=["q_proj"])
        big = Tensor("model.layers.0.self_attn.q_proj.weight", "F32", (4096, 16384), "", 0)
        row = np.ones((64, 16384), np.float32)
        write_file(os.path.join(model, "model.safetensors"), [big], "F32", lambda _: (row for _ in range(64)))
        write_tensors(os.path.join(adapter, "adapter_model.safetensors"), {
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((8, 16384)),
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": np.ones((4096, 8))})
        code = ("import resource, sys, merge\n"
                "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
                "assert merge.main(sys.argv[1:]) == 0\n"
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n")
        done = subprocess.run([sys.executable, "-c", code, model, adapter, self.out], stdout=subprocess.PIPE, timeout=120,
                              env={**os.environ, "PYTHONPATH": os.path.join(model_dirs.ROOT, "tools"), "OMP_NUM_THREADS": "1"})
        self.assertEqual(done.returncode, 0)
        grown_kb = int(done.stdout.splitlines()[-1])
        self.assertLess(grown_kb, 150_000)
        out = read_model_weights(self.out)[big.name]
        np.testing.assert_array_equal(to_float32(read_rows(out, 4095, 4096), out.dtype), np.full((1, 16384), 17.0))


if __name__ == "__main__":
    unittest.main()
