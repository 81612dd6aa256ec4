"""tools/import_deepspeed: which keys become which, what is listed as left out, and that ./utrain takes the result."""
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

import model_dirs
import import_deepspeed

BINARY = os.environ.get("UTRAIN_BINARY", os.path.join(model_dirs.ROOT, "build", "cpu", "utrain"))

# As `accelerate config` writes it.
ACCELERATE = """compute_environment: LOCAL_MACHINE
debug: false
deepspeed_config:
  gradient_accumulation_steps: 4
  gradient_clipping: 0.5
  offload_optimizer_device: cpu
  offload_param_device: none
  zero3_init_flag: true
  zero3_save_16bit_model: true
  zero_stage: 3
distributed_type: DEEPSPEED
downcast_bf16: 'no'
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 8
rdzv_backend: static
same_network: true
tpu_env: []
use_cpu: false
"""
DEEPSPEED = {
    "train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2, "gradient_clipping": 0.3,
    "steps_per_print": 20,
    "bf16": {"enabled": True}, "fp16": {"enabled": False, "loss_scale": 0, "loss_scale_window": 500, "hysteresis": 2},
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "betas": [0.9, 0.95], "eps": 1e-7, "weight_decay": 0.1}},
    "scheduler": {"type": "WarmupDecayLR",
                  "params": {"total_num_steps": 900, "warmup_max_lr": 2e-5, "warmup_num_steps": 30, "warmup_type": "linear"}},
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "reduce_bucket_size": "auto",
                          "overlap_comm": True},
}


class ImportDeepSpeed(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, content, name=None):
        path = self.path(name or ("in.yaml" if isinstance(content, str) else "in.json"))
        with open(path, "w", encoding="utf-8") as file:
            file.write(content if isinstance(content, str) else json.dumps(content))
        return path

    def run_tool(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = import_deepspeed.main([str(a) for a in arguments])
        return code, out.getvalue(), err.getvalue()

    def translated(self, content, *options, name=None):
        """({key: text of its value}, the whole text, standard error)"""
        code, out, err = self.run_tool(self.write(content, name), *options)
        self.assertEqual(code, 0, err)
        settings, section = {}, ""
        for line in out.splitlines():
            if line.startswith("["):
                section = line[1:-1]
            elif line and not line.startswith("#"):
                key, value = re.fullmatch(r"(\w+) = (.+?) +# .+", line).groups()
                settings[f"{section}.{key}"] = value
        # Whatever a user has to look at stands in both.
        for line in err.splitlines():
            self.assertIn(re.sub("^(import_deepspeed:)? +", "", line), out)
        return settings, out, err

    def with_keys(self, **changes):
        return {**DEEPSPEED, **changes}

    def refused(self, code, pattern, content, *options, name=None):
        path = self.write(content, name) if content is not None else self.path("none.json")
        before = sorted(os.listdir(self.directory))
        got, out, err = self.run_tool(path, *options)
        self.assertEqual((got, out), (code, ""), err)
        self.assertRegex(err, r"^import_deepspeed: error: .+: .+; .+\n$")
        self.assertRegex(err, pattern)
        self.assertEqual(sorted(os.listdir(self.directory)), before)

    def test_accelerate(self):
        settings, out, err = self.translated(ACCELERATE)
        self.assertEqual(settings, {
            "model.dtype": '"bfloat16"', "train.gradient_accumulation_steps": "4", "train.max_grad_norm": "0.5",
            "parallel.strategy": '"zero3"', "parallel.offload_optimizer": "true", "parallel.offload_params": "false"})
        self.assertIn("# For 8 ranks: mpirun -np 8 --oversubscribe --bind-to none ./utrain input.toml\n", out)
        self.assertRegex(out, r'strategy = "zero3" +# deepspeed_config.zero_stage = 3\n')
        self.assertRegex(err, "(?m)^  rdzv_backend = static: mpirun or srun starts the ranks$")
        self.assertNotIn("offload_", err)
        self.assertNotIn("debug", err)
        self.assertIn("#   debug = false\n", out)

    def test_deepspeed(self):
        settings, out, err = self.translated(DEEPSPEED)
        self.assertEqual(settings, {
            "model.dtype": '"bfloat16"', "train.max_steps": "900", "train.global_batch_size": "64", "train.micro_batch_size": "4",
            "train.lr": "2e-05", "train.schedule": '"linear"', "train.warmup_steps": "30", "train.weight_decay": "0.1",
            "train.betas": "[0.9, 0.95]", "train.eps": "1e-07", "train.max_grad_norm": "0.3", "parallel.strategy": '"zero2"',
            "parallel.offload_optimizer": "true", "log.every": "20"})
        self.assertRegex(out, r"lr = 2e-05 +# scheduler.params.warmup_max_lr = 2e-05; optimizer.params.lr = 2e-05\n")
        self.assertRegex(err, "(?m)^  fp16.loss_scale_window = 500: dynamic loss scaling starts")
        self.assertRegex(err, "(?m)^  zero_optimization.reduce_bucket_size = auto: ")
        self.assertNotIn("Contradictions", out)
        self.assertIn("#   gradient_accumulation_steps = 2, as it follows from global_batch_size on 8 ranks\n", out)

    def test_every_key_is_somewhere(self):
        """A key of the file is the source of a value, or listed."""
        content = self.with_keys(wandb={"enabled": True, "project": "p"}, elasticity={"enabled": False},
                                 quantum={"a": [1, {"b": 2}]})
        _, out, _ = self.translated(content)

        def leaves(at, value):
            if not isinstance(value, dict):
                return [at]
            return [leaf for name, inner in value.items() for leaf in leaves(f"{at}.{name}" if at else name, inner)]

        off_and_absorbed = {"fp16.enabled"}  # bf16.enabled says it
        for leaf in set(leaves("", content)) - off_and_absorbed:
            self.assertIn(leaf + " = ", out)
        self.assertIn("quantum.a = [1, {\"b\": 2}]: not a key that is known here", out)

    def test_automatic(self):
        optimizer = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": 1e-8, "weight_decay": "auto"}}
        settings, out, err = self.translated(self.with_keys(
            train_batch_size="auto", train_micro_batch_size_per_gpu="auto", optimizer=optimizer, bf16={"enabled": "auto"}, fp16={},
            scheduler={"type": "WarmupLR", "params": {"warmup_max_lr": "auto", "warmup_num_steps": "auto"}}))
        self.assertEqual(settings["train.gradient_accumulation_steps"], "2")
        for key in ("model.dtype", "train.global_batch_size", "train.micro_batch_size", "train.lr", "train.betas",
                    "train.warmup_steps"):
            self.assertNotIn(key, settings)
        self.assertIn('Left to the Trainer ("auto"), so left out here:', err)
        self.assertRegex(err, "(?m)^  optimizer.params.weight_decay: set train.weight_decay$")
        self.assertRegex(err, "(?m)^  scheduler.params.warmup_type = log, DeepSpeed's default: the learning rate rises linearly")

    def test_file_named_within(self):
        self.write(DEEPSPEED, "ds.json")
        accelerate = ("deepspeed_config:\n  deepspeed_config_file: /elsewhere/ds.json\n  zero3_init_flag: false\n"
                      "distributed_type: DEEPSPEED\nnum_processes: 8\n")
        settings, out, _ = self.translated(accelerate)
        self.assertEqual(settings["parallel.strategy"], '"zero2"')
        self.assertEqual(settings["train.global_batch_size"], "64")
        self.assertRegex(out, r'strategy = "zero2" +# ds.json: zero_optimization.stage = 2\n')
        self.assertIn("From in.yaml (Accelerate) and ds.json (DeepSpeed)", out)
        self.assertNotIn("Contradictions", out)
        beside = "  zero_stage: 3\n  gradient_accumulation_steps: 1\n  zero3_init"
        settings, _, err = self.translated(accelerate.replace("  zero3_init", beside) + "mixed_precision: fp16\n")
        self.assertEqual((settings["parallel.strategy"], settings["model.dtype"]), ('"zero2"', '"bfloat16"'))
        for pattern in ("zero_stage, .*beside deepspeed_config_file", "zero_stage = 3, but ds.json: zero_optimization.stage = 2",
                        "gradient_accumulation_steps = 1, but ds.json: gradient_accumulation_steps = 2",
                        "mixed_precision = fp16, but ds.json: bf16.enabled = true"):
            self.assertRegex(err, pattern)
        os.remove(self.path("ds.json"))
        self.refused(2, "named by deepspeed_config_file", accelerate)

    def test_contradictions(self):
        for ranks, changes, pattern in (
                (4, {}, "train_batch_size = 64, but .* = 4 x gradient_accumulation_steps = 2 x 4 ranks is 32:"),
                (None, {"train_batch_size": 60}, "train_batch_size = 60, but .* is 8, no divisor of it:"),
                (3, {"gradient_accumulation_steps": "auto"}, "= 4 x 3 ranks is 12, no divisor of it:"),
                (8, {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-3}}},
                 "optimizer.params.lr = 2e-05, but scheduler.params.warmup_max_lr = 0.001: train.lr is taken from the latter"),
                (8, {"fp16": {"enabled": True}}, "fp16.enabled = true, but bf16.enabled = true")):
            with self.subTest(pattern=pattern):
                options = ("--ranks", ranks) if ranks else ()
                _, out, err = self.translated(self.with_keys(**changes), *options)
                self.assertRegex(err, "Contradictions:\n  .*" + pattern)
                self.assertRegex(out, "# Contradictions:\n#   .*" + pattern)
        self.assertNotIn("Contradictions", self.translated(DEEPSPEED, "--ranks", 8)[1])
        self.assertIn("num_processes = 8, but --ranks = 4", self.translated(ACCELERATE, "--ranks", 4)[2])

    def test_single_keys(self):
        zero = "zero_optimization"
        for changes, key, value in (
                ({zero: {"stage": 0}}, "parallel.strategy", '"ddp"'), ({zero: {"stage": 1}}, "parallel.strategy", '"zero1"'),
                ({zero: {"stage": 3, "zero_hpz_partition_size": 8}}, "parallel.shard_group", '"node"'),
                ({zero: {"stage": 2, "zero_hpz_partition_size": 8}}, "parallel.shard_group", None),
                ({zero: {"stage": 3, "offload_param": {"device": "cpu"}}}, "parallel.offload_params", "true"),
                ({zero: {"stage": 3, "offload_param": {"device": "nvme"}}}, "parallel.offload_params", None),
                ({zero: {"stage": 2, "cpu_offload": True}}, "parallel.offload_optimizer", "true"),
                ({"activation_checkpointing": {"cpu_checkpointing": True}}, "train.recompute", '"offload"'),
                ({"activation_checkpointing": {"cpu_checkpointing": False}}, "train.recompute", None),
                ({"bf16": {}, "fp16": {"enabled": True}}, "model.dtype", '"float16"'),
                ({"bf16": {"enabled": False}}, "model.dtype", '"float32"'), ({"bf16": {}}, "model.dtype", None),
                ({"scheduler": {"type": "WarmupCosineLR", "params": {}}}, "train.schedule", '"cosine"'),
                ({"scheduler": {"type": "WarmupLR", "params": {}}}, "train.schedule", '"constant"'),
                ({"scheduler": {"type": "OneCycle", "params": {"cycle_max_lr": 1}}}, "train.schedule", None),
                ({"optimizer": {"type": "Lamb", "params": {"lr": 1}}, "scheduler": {}}, "train.lr", None),
                ({"optimizer": {"type": "Adam", "params": {"lr": 1, "adam_w_mode": False}}, "scheduler": {}}, "train.lr",
                 None),
                ({"optimizer": {"type": "Adam", "params": {"lr": "3e-4"}}, "scheduler": {}}, "train.lr", "0.0003"),
                ({"steps_per_print": float("inf")}, "log.every", None), ({"tensorboard": {"enabled": True}}, "log.tensorboard", "true")):
            with self.subTest(changes=changes):
                settings, _, _ = self.translated(self.with_keys(**changes))
                self.assertEqual(settings.get(key), value)
        for lines, key, value in (("distributed_type: MULTI_GPU", "parallel.strategy", '"ddp"'),
                                  ("distributed_type: MULTI_CPU", "run.backend", '"cpu"'),
                                  ("distributed_type: no", "parallel.strategy", '"ddp"'),
                                  ("distributed_type: FSDP", "parallel.strategy", None),
                                  ("distributed_type: DEEPSPEED", "parallel.strategy", '"zero2"'),
                                  ("mixed_precision: no", "model.dtype", None), ("mixed_precision: fp8", "model.dtype", None),
                                  ("mixed_precision: fp16\nuse_cpu: true", "run.backend", '"cpu"')):
            with self.subTest(lines=lines):
                settings, out, _ = self.translated(lines + "\n")
                self.assertEqual(settings.get(key), value)
                self.assertIn(lines.split(":")[0], out)

    def test_refused(self):
        self.refused(2, "no such file", None)
        self.refused(3, "no key of Accelerate or DeepSpeed", {"model": 1})
        self.refused(3, "holds no keys", "- 1\n- 2\n")
        self.refused(3, "holds no keys", "")
        self.refused(3, "neither JSON nor YAML", "{", name="in.json")
        self.refused(3, "neither JSON nor YAML", "a: [\n")
        self.refused(3, "neither JSON nor YAML", "num_processes: !!python/object:os.system {}\n")
        self.refused(3, "stage stands twice", '{"zero_optimization": {"stage": 1, "stage": 2}}', name="in.json")
        self.refused(3, "zero_stage stands twice", "deepspeed_config:\n  zero_stage: 1\n  zero_stage: 2\n")
        self.refused(3, "more than", "a: " + "x" * (1 << 20))
        bomb = "a0: &a0 {" + ", ".join(f"k{i}: 1" for i in range(30)) + "}\n"
        for i in range(1, 9):
            bomb += f"a{i}: &a{i} {{" + ", ".join(f"k{j}: *a{i - 1}" for j in range(30)) + "}\n"
        self.refused(3, "more than 10000 keys", "num_processes: 1\n" + bomb)
        for leaf in ("{x: null}", "[lol, lol]"):
            chain = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 28))
            self.refused(3, "more than", f"zero_optimization: {{stage: 1}}\na0: &a0 {leaf}\n" + chain)
        twice = ", ".join(f'"k{i}": 1' for i in range(60_000))
        self.refused(3, "k59999 stands twice", "{" + twice + ', "k59999": 1}', name="in.json")
        for text in ("fp16: {enabled: !!bool foo}", 'train_batch_size: !!int ""', 'train_batch_size: !!timestamp "x"'):
            self.refused(3, "neither JSON nor YAML", text + "\n")
        self.refused(3, "plain text", "a: &a {x: 1}\nb: {<<: *a}\n")
        self.refused(3, "nested more than", "zero_optimization: &a\n  b: *a\n")
        self.refused(3, "nested more than", "zero_optimization:\n  b: &a [*a]\n")
        for betas in ([10**400, 0.9], "00", [True, 0, 0], [False, 0]):
            self.refused(3, "two numbers|1024 bits", {"optimizer": {"type": "Adam", "params": {"betas": betas}}})
        self.refused(3, "1024 bits", {"train_batch_size": 10**400})
        self.refused(3, "below 2\\^63", {"train_batch_size": 10**30})
        for changes, pattern in (({"train_batch_size": 0}, "train_batch_size is 0, wanted an integer of at least 1"),
                                 ({"train_batch_size": 1.5}, "is 1.5"), ({"train_batch_size": [1]}, "wanted a number"),
                                 ({"gradient_clipping": -1}, "gradient_clipping is -1"), ({"gradient_clipping": True}, "is true"),
                                 ({"zero_optimization": {"stage": 4}}, "stage is 4, wanted 0, 1, 2 or 3"),
                                 ({"zero_optimization": {"offload_param": {"device": "gpu"}}}, "wanted none, cpu or nvme"),
                                 ({"bf16": {"enabled": 1}}, "wanted true or false"),
                                 ({"optimizer": {"type": "AdamW", "params": {"betas": [0.9]}}}, "two numbers"),
                                 ({"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 1]}}}, "two numbers"),
                                 ({"optimizer": {"type": "AdamW", "params": {"eps": 0}}}, "above 0"),
                                 ({"optimizer": {"type": 3}}, "wanted a text")):
            with self.subTest(pattern=pattern):
                self.refused(3, pattern, self.with_keys(**changes))
        self.refused(2, "--ranks", DEEPSPEED, "--ranks", 0)
        self.refused(2, "see tools/import_deepspeed --help", DEEPSPEED, "--no-such")

    def test_text_that_would_end_a_comment(self):
        settings, out, _ = self.translated({"train_batch_size": 4, "x\n[run]\ndir": "a\n[lora]\nr = 3\x00", "y": "\u2028z"})
        self.assertEqual(settings, {"train.global_batch_size": "4"})
        named = self.translated({"train_batch_size": 4}, name="in\n[run]\ndir.json")[1]
        for line in (out + named).split("\n"):
            self.assertTrue(line.isprintable(), line)

    def test_output_file(self):
        source, output = self.write(DEEPSPEED), self.path("input.toml")
        code, out, _ = self.run_tool(source, "-o", output)
        self.assertEqual((code, out), (0, f"{output}: 14 keys from in.json (DeepSpeed)\n"))
        with open(output, encoding="utf-8") as file:
            text = file.read()
        self.assertEqual(self.run_tool(source)[1], text)
        self.assertEqual(self.run_tool(source, "-o", output)[0], 2)
        self.assertEqual(self.run_tool(source, "-o", output, "--overwrite")[0], 0)
        self.assertEqual(self.run_tool(source, "-o", source, "--overwrite")[0], 2)
        self.assertEqual(self.run_tool(source, "-o", self.path("none/input.toml"))[0], 2)
        self.assertEqual(sorted(os.listdir(self.directory)), ["in.json", "input.toml"])

    def test_front_scripts(self):
        """From another directory, with a module of the user's that shadows one of ours."""
        self.write("raise SystemExit('wrong module')", name="yaml.py")
        source = self.write(ACCELERATE)
        for tool, arguments, code in (("import_deepspeed", [source], 0), ("merge", ["none", "none", "out"], 2)):
            done = subprocess.run([os.path.join(model_dirs.ROOT, "tools", tool), *arguments], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, cwd=self.directory, timeout=60,
                                  env={**os.environ, "PYTHONPATH": self.directory})
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertNotIn(b"Traceback", done.stderr)

    def test_output_that_takes_nothing(self):
        command = f"{sys.executable} {os.path.join(model_dirs.ROOT, 'tools', 'import_deepspeed.py')} {self.write(ACCELERATE)}"
        for where, code, pattern in ((">/dev/full", 74, r"error: standard output: .+; .+\n"), ("| true", 0, "import_deepspeed: No counterpart"),
                                     ("2>/dev/full", 0, r"^$"), (">&-", 74, "error: standard output")):
            done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{command} {where}"], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, timeout=60)
            with self.subTest(where=where):
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertRegex(done.stderr.decode(), pattern)
                self.assertNotIn(b"Traceback", done.stderr)
                self.assertNotIn(b"Exception", done.stderr)

    @unittest.skipUnless(os.path.exists(BINARY), f"{BINARY} is not built")
    def test_utrain_takes_it(self):
        """Every key and value is one of the program's; all that it may say against one is that it is not in this version."""
        everything = self.with_keys(
            scheduler={"type": "WarmupCosineLR", "params": {"warmup_num_steps": 3, "total_num_steps": 50}},
            zero_optimization={"stage": 3, "zero_hpz_partition_size": 8, "offload_param": {"device": "cpu"},
                               "offload_optimizer": {"device": "cpu"}},
            activation_checkpointing={"cpu_checkpointing": True}, tensorboard={"enabled": True})
        plain = self.with_keys(zero_optimization={"stage": 0}, train_batch_size="auto")
        for name, content, built in (("plain", plain, True), ("everything", everything, False), ("accelerate", ACCELERATE, False)):
            with self.subTest(name=name):
                source, output = self.write(content), self.path(f"{name}.toml")
                self.assertEqual(self.run_tool(source, "-o", output)[0], 0)
                own = [] if "max_steps" in open_text(output) else ["--train.max_steps=5"]
                done = subprocess.run([BINARY, output, "--print-config", f"--model.path={model_dirs.TINY_LLAMA}",
                                       f"--data.train={source}", f"--run.dir={self.path('run')}", *own],
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
                errors = done.stderr.decode().splitlines()
                if built:
                    self.assertEqual((done.returncode, errors), (0, []))
                    self.assertIn("lr = 2e-05", done.stdout.decode())
                for line in errors:
                    self.assertIn("not in this version", line)


def open_text(path):
    with open(path, encoding="utf-8") as file:
        return "\n".join(line for line in file.read().splitlines() if not line.startswith("#"))


if __name__ == "__main__":
    unittest.main()
