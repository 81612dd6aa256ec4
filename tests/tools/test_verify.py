"""tools/verify on checkpoints made here with h5py, sound and damaged; that it takes those of ./utrain is in checkpoint_test."""
import contextlib
import io
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import h5py
import numpy as np
import xxhash

import model_dirs
import verify

# {name: (first element, shape)} of a buffer of N_ELEM; tensors lie across slices of ranks.
TENSORS = {"a.lora_A.weight": (0, (5, 30)), "a.lora_B.weight": (150, (40, 5)), "norm.weight": (360, (17,))}
N_ELEM = 400


def slices_of(ranks):
    """Two units, each cut into one slice a rank."""
    units = [(0, 350), (350, N_ELEM)]
    cut = [[begin + (end - begin) * i // ranks for i in range(ranks + 1)] for begin, end in units]
    return [[(edges[r], edges[r + 1] - edges[r]) for edges in cut] for r in range(ranks)]


def write(path, text):
    with open(path, "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def read(path):
    with open(path, "rb") as file:
        return file.read()


def commit(path, change=lambda manifest: None):
    """Manifest and COMMITTED for the files that are there; what was in the old manifest besides them stays."""
    manifest = json.loads(read(os.path.join(path, "manifest.json")))
    for file in manifest["files"]:
        content = read(os.path.join(path, file["name"]))
        file.update(bytes=len(content), xxh3=xxhash.xxh3_128(content).hexdigest())
    change(manifest)
    text = json.dumps(manifest).encode()
    write(os.path.join(path, "manifest.json"), text)
    write(os.path.join(path, "COMMITTED"), xxhash.xxh3_128(text).hexdigest() + "\n")


def make(path, values, ranks=3, step=100, state=None):
    """values: {array: [N_ELEM]}"""
    os.makedirs(os.path.join(path, "adapter"))
    slices, names = slices_of(ranks), [f"shard-{r:05}-of-{ranks:05}.h5" for r in range(ranks)]
    for rank, name in enumerate(names):
        with h5py.File(os.path.join(path, name), "w", libver=("v110", "v110")) as file:
            file.attrs.update(format_version=1, rank=rank, ranks=ranks)
            file["slices"] = np.array(slices[rank], np.int64)
            for array, all_values in values.items():
                own = np.concatenate([all_values[b:b + n] for b, n in slices[rank]]).astype(np.float32)
                file.create_dataset(array, data=own, chunks=own.shape, fletcher32=True)
    with h5py.File(os.path.join(path, "index.h5"), "w", libver=("v110", "v110")) as file:
        for array in values:
            for tensor, (offset, shape) in TENSORS.items():
                file.create_virtual_dataset(f"{array}/{tensor}", layout_of(array, offset, shape, names, slices))
                file[f"{array}/{tensor}"].attrs["offset"] = offset
    write(os.path.join(path, "state.json"), json.dumps({"step": step, **(state or {})}))
    write(os.path.join(path, "adapter", "adapter_config.json"), "{}")
    files = [{"name": name} for name in [*names, "index.h5", "state.json", "adapter/adapter_config.json"]]
    flat = [[number for s in of_rank for number in s] for of_rank in slices]
    manifest = {"format_version": 1, "step": step, "ranks": ranks, "n_elem": N_ELEM, "files": files, "slices": flat}
    write(os.path.join(path, "manifest.json"), json.dumps(manifest))
    commit(path)
    return path


def layout_of(array, offset, shape, names, slices):
    """One element at a time would do; rows are enough here: each is cut where a slice ends."""
    layout = h5py.VirtualLayout(shape, np.float32)
    width = shape[-1]
    for row in range(shape[0] if len(shape) == 2 else 1):
        low, high = offset + row * width, offset + (row + 1) * width
        for name, of_rank in zip(names, slices):
            source = h5py.VirtualSource(name, array, (sum(n for _, n in of_rank),), np.float32)
            in_shard = 0
            for begin, n in of_rank:
                b, e = max(low, begin), min(high, begin + n)
                if b < e:
                    to = slice(b - low, e - low)
                    layout[(row, to) if len(shape) == 2 else to] = source[in_shard + b - begin:in_shard + e - begin]
                in_shard += n
    return layout


class Verify(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        random = np.random.default_rng(1)
        self.values = {array: random.standard_normal(N_ELEM).astype(np.float32) for array in verify.ARRAYS}
        self.path = make(self.at("step-00000100"), self.values, state={"eval_loss": 2.25})

    def at(self, name):
        return os.path.join(self.directory, name)

    def of(self, name):
        return os.path.join(self.path, name)

    def run_tool(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = verify.main(list(arguments))
        return code, out.getvalue(), err.getvalue()

    def assert_damaged(self, *words, path=None):
        code, out, err = self.run_tool(path or self.path)
        self.assertEqual((code, out), (5, ""), err)
        self.assertRegex(err, r"\Averify: error: [^\n]*; [^\n]*\n\Z")
        for word in words:
            self.assertIn(word, err)

    def test_sound(self):
        code, out, err = self.run_tool(self.path)
        self.assertEqual((code, err), (0, ""))
        for text in ("sound", "step       100", "ranks      3", "tensors    3, 367 parameters", "files      6", "eval loss  2.25"):
            self.assertIn(text, out)
        self.assertNotIn("besides", out)
        write(self.of("note"), "x")
        self.assertIn("besides    note", self.run_tool(self.path)[1])

    def test_front_script_from_anywhere(self):
        tool = os.path.join(model_dirs.ROOT, "tools", "verify")
        run = subprocess.run([tool, self.path], cwd="/", capture_output=True, text=True)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertEqual(subprocess.run([tool], capture_output=True).returncode, 2)

    def test_usage_and_missing(self):
        code, out, err = self.run_tool("--nothing", self.path)
        self.assertEqual((code, out), (2, ""))
        self.assertIn("verify: error: command line", err)
        self.assert_damaged("no such checkpoint", path=self.at("none"))
        self.assert_damaged("no directory", path=self.of("state.json"))

    def test_flips_truncations_and_missing_files(self):
        random = np.random.default_rng(2)
        names = [os.path.relpath(os.path.join(d, n), self.path) for d, _, names in os.walk(self.path) for n in names]
        self.assertEqual(len(names), 8)
        for name in names:
            whole = read(self.of(name))
            for _ in range(12):
                bit, flipped = int(random.integers(8 * len(whole))), bytearray(whole)
                flipped[bit // 8] ^= 1 << bit % 8
                write(self.of(name), bytes(flipped))
                self.assert_damaged()
            for left in (0, len(whole) // 2, len(whole) - 1):
                write(self.of(name), whole[:left])
                self.assert_damaged()
            os.remove(self.of(name))
            self.assert_damaged(name)
            write(self.at("same"), whole)
            os.symlink(self.at("same"), self.of(name))
            self.assert_damaged("no regular file")
            os.remove(self.of(name))
            write(self.of(name), whole)
        self.assertEqual(self.run_tool(self.path)[0], 0)

    def test_another_step(self):
        other = make(self.at("step-00000200"), self.values, step=200)
        for name in ("state.json", "manifest.json", "COMMITTED"):
            whole = read(self.of(name))
            shutil.copy(os.path.join(other, name), self.of(name))
            self.assert_damaged()
            write(self.of(name), whole)
        os.rename(other, self.at("step-00000300"))
        self.assert_damaged("holds step 200", path=self.at("step-00000300"))

    def test_shards_against_manifest(self):
        shutil.copy(self.of("shard-00001-of-00003.h5"), self.of("shard-00000-of-00003.h5"))
        commit(self.path)
        self.assert_damaged("shard-00000-of-00003.h5", "attribute rank")

    def test_checksums_of_chunks(self):
        name = self.of("shard-00002-of-00003.h5")
        whole = bytearray(read(name))
        begin, n = slices_of(3)[2][0]
        place = whole.find(self.values["v"][begin:begin + n].tobytes())
        self.assertGreater(place, 0)
        whole[place + 9] ^= 1
        write(name, bytes(whole))
        commit(self.path)
        self.assert_damaged("shard-00002-of-00003.h5", "/v")

    def test_index_against_shards(self):
        with h5py.File(self.of("index.h5"), "r+") as file:
            file["m/norm.weight"].attrs["offset"] = 361
            file["v/norm.weight"].attrs["offset"] = 361
            file["parameters/norm.weight"].attrs["offset"] = 361
        commit(self.path)
        self.assert_damaged("norm.weight", "other values")

    def test_index_opens_nothing_else(self):
        with h5py.File(self.at("secret.h5"), "w") as file:
            file["m"] = np.ones(17, np.float32)
        with h5py.File(self.of("index.h5"), "r+") as file:
            del file["m/norm.weight"]
            layout = h5py.VirtualLayout((17,), np.float32)
            layout[:] = h5py.VirtualSource("../secret.h5", "m", (17,), np.float32)
            file.create_virtual_dataset("m/norm.weight", layout)
            file["m/norm.weight"].attrs["offset"] = 360
        commit(self.path)
        self.assert_damaged("../secret.h5")
        with h5py.File(self.of("index.h5"), "r+") as file:
            del file["m/norm.weight"]
            file["m/norm.weight"] = h5py.ExternalLink("../secret.h5", "/m")
        commit(self.path)
        self.assert_damaged("m/norm.weight", "a link")

    def test_manifests_that_lie(self):
        whole = read(self.of("manifest.json"))
        cases = [(dict(format_version=2), "newer"), (dict(format_version="1"), "no manifest"), (dict(ranks=2), "missing"),
                 (dict(step=-1), "no manifest"), (dict(n_elem=401), "wanted 401"), (dict(slices=[[0, 400], [0, 1], []]), "slices"),
                 (dict(slices=3), "no manifest"), (dict(files=[]), "missing"), (dict(step=True), "no manifest")]
        for members, word in cases:
            commit(self.path, lambda manifest: manifest.update(members))
            self.assert_damaged("manifest.json", word)
            write(self.of("manifest.json"), whole)
        for name in ("../x", "/etc/passwd", "a/b/c", ".hidden", "adapter/..", ""):
            write(self.of("manifest.json"), whole)
            commit(self.path, lambda manifest: manifest["files"].append({"name": name, "bytes": 1, "xxh3": "0" * 32}))
            self.assert_damaged("no manifest")

    def test_compare(self):
        same = make(self.at("same"), self.values, ranks=4)
        code, out, err = self.run_tool(self.path, same)
        self.assertEqual((code, err, out.count("3 tensors, equal to the bit")), (0, "", 3))
        changed = {array: values.copy() for array, values in self.values.items()}
        changed["m"][365] += 0.5
        changed["m"][3] += 0.25
        changed["v"][10] = np.nan
        changed["parameters"][355] += 1.0  # between tensors
        code, out, err = self.run_tool(self.path, make(self.at("other"), changed, ranks=1, step=7))
        self.assertEqual((code, err), (1, ""))
        self.assertIn("step 7 of 1 rank\n", out)
        self.assertRegex(out, r"parameters 3 tensors, equal to the bit")
        self.assertRegex(out, r"m +3 tensors, largest difference 0.5 in norm.weight")
        self.assertRegex(out, r"v +3 tensors, largest difference inf in a.lora_A.weight")

    def test_compare_zero_of_either_sign(self):
        for values, zero in ((self.values, 0.0), (signed := {a: v.copy() for a, v in self.values.items()}, -0.0)):
            values["m"][0] = zero
        first, second = make(self.at("plus"), self.values), make(self.at("minus"), signed)
        code, out, _ = self.run_tool(first, second)
        self.assertEqual(code, 1)
        self.assertRegex(out, r"m +3 tensors, largest difference 0 in a.lora_A.weight")

    def test_compare_needs_sound_ones(self):
        other = shutil.copytree(self.path, self.at("copy"))
        os.remove(os.path.join(other, "COMMITTED"))
        code, out, err = self.run_tool(self.path, other)
        self.assertEqual((code, out), (5, ""))
        self.assertIn("COMMITTED", err)


if __name__ == "__main__":
    unittest.main()
