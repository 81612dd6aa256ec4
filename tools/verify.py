"""Checks a checkpoint without the program that wrote it, or compares two: sizes and hashes of all files, the shards against the
manifest, every chunk's checksum, and each tensor as index.h5 shows it against the shards.

Exit codes: 0 sound, or equal; 1 two sound checkpoints differ; 2 usage; 5 damaged or missing.
"""
import argparse
import json
import os
import re
import stat
import sys

import h5py
import numpy as np
import xxhash

from data.command import exit_code
from data.errors import USAGE, UserError
from data.standard_output import write_out

DAMAGED = 5
FORMAT = 1
ARRAYS = ("parameters", "m", "v")
NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]+(/(?!\.)[A-Za-z0-9._-]+)?")
MAX_TEXT = 64 << 20
AT_ONCE = 1 << 22  # values that are held of an array
SPACE = "check the space where it goes"


def damaged(where, what):
    return UserError(DAMAGED, where, what, "this checkpoint is damaged: use another one")


def count_of_ranks(n):
    return f"{n} rank{'' if n == 1 else 's'}"


def regular_size(path):
    try:
        info = os.lstat(path)
    except OSError as error:
        raise damaged(path, error.strerror)
    if not stat.S_ISREG(info.st_mode):
        raise damaged(path, "is no regular file")
    return info.st_size


def read_text(path):
    if regular_size(path) > MAX_TEXT:
        raise damaged(path, f"has more than {MAX_TEXT} bytes")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise damaged(path, error.strerror)


def no_duplicates(pairs):
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key is there twice")
    return members


def parse(path, text):
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is no JSON ({str(error)[:100]})")
    if not isinstance(value, dict):
        raise damaged(path, "is no JSON object")
    return value


def hash_of(path):
    hasher = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                hasher.update(block)
    except OSError as error:
        raise damaged(path, error.strerror)
    return hasher.hexdigest()


class Checkpoint:
    def __init__(self, path):
        self.path = path
        if not os.path.isdir(path):
            raise UserError(DAMAGED, path, "is no directory" if os.path.exists(path) else "no such checkpoint", "check the path")
        if not any(os.path.lexists(self.at(name)) for name in ("COMMITTED", "manifest.json")):
            raise UserError(DAMAGED, path, "holds no checkpoint", "name one, as RUN/checkpoints/step-00000100")
        self.read_manifest()
        self.check_slices()
        self.check_files()
        self.state = parse(self.at("state.json"), read_text(self.at("state.json")))
        if self.state.get("step", self.step) != self.step:
            raise damaged(self.at("state.json"), f"step is {self.state['step']}, {self.step} wanted")

    def at(self, name):
        return os.path.join(self.path, name)

    def read_manifest(self):
        path = self.at("manifest.json")
        committed, text = read_text(self.at("COMMITTED")), read_text(path)
        if committed != xxhash.xxh3_128(text).hexdigest().encode() + b"\n":
            raise damaged(path, "is not what COMMITTED was written for")
        manifest = parse(path, text)
        version = manifest.get("format_version")
        if isinstance(version, int) and version > FORMAT:
            raise UserError(DAMAGED, path, f"format_version {version} found, at most {FORMAT} is read", "use a newer tools/verify")
        try:
            self.step, self.ranks, self.n_elem = (integer(manifest[key]) for key in ("step", "ranks", "n_elem"))
            self.slices = [[(integer(s[i]), integer(s[i + 1])) for i in range(0, len(s), 2)] for s in manifest["slices"]]
            self.files = {file["name"]: (integer(file["bytes"]), file["xxh3"]) for file in manifest["files"]}
            names = [file["name"] for file in manifest["files"]]
            good = version == FORMAT and self.ranks >= 1 and len(names) == len(set(names)) and all(map(NAME.fullmatch, names))
        except (KeyError, IndexError, TypeError, ValueError):
            good = False
        if not good:
            raise damaged(path, "is no manifest of a checkpoint")
        self.shards = [f"shard-{rank:05}-of-{self.ranks:05}.h5" for rank in range(self.ranks)]
        missing = set(self.shards + ["index.h5", "state.json"]) - set(names)
        if missing:
            raise damaged(path, f"{min(missing)} is missing")
        named = re.fullmatch(r"step-(\d{8,})", os.path.basename(os.path.abspath(self.path)))
        if named and int(named[1]) != self.step:
            raise damaged(self.path, f"holds step {self.step}, another than its name says")

    def check_slices(self):
        end = 0
        for begin, n_elem in sorted(s for of_rank in self.slices for s in of_rank if s[1]):
            if begin != end:
                raise damaged(self.at("manifest.json"), f"slices leave or share elements at {min(begin, end)}")
            end = begin + n_elem
        if end != self.n_elem or len(self.slices) != self.ranks:
            raise damaged(self.at("manifest.json"), f"slices of {count_of_ranks(len(self.slices))} end at {end}, wanted {self.n_elem}")

    def check_files(self):
        for name, (size, xxh3) in self.files.items():
            path, above = self.at(name), os.path.dirname(self.at(name))
            if "/" in name and os.path.islink(above):
                raise damaged(above, "is a link")
            found = regular_size(path)
            if found != size:
                raise damaged(path, f"has {found} bytes, {size} wanted")
            if hash_of(path) != xxh3:
                raise damaged(path, "has another XXH3 than the manifest")

    def extra_files(self):
        found = {os.path.relpath(os.path.join(folder, name), self.path) for folder, _, names in os.walk(self.path) for name in names}
        return sorted(found - set(self.files) - {"manifest.json", "COMMITTED"})


def integer(value):
    if type(value) is not int or value < 0:
        raise ValueError
    return value


class Contents:
    """The HDF5 files of a checkpoint, open. Every fault names file and data set."""

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint
        self.shards = [self.open(name) for name in checkpoint.shards]
        self.index = self.open("index.h5")
        try:
            for rank in range(checkpoint.ranks):
                self.check_shard(rank)
            self.tensors = self.check_index()
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:  # h5py, on contents that nobody wrote
            raise damaged(checkpoint.path, f"HDF5 contents cannot be read ({str(error)[:200]})")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in [*self.shards, self.index]:
            file.close()

    def open(self, name):
        try:
            return h5py.File(self.checkpoint.at(name), "r")
        except OSError as error:
            raise damaged(self.checkpoint.at(name), f"is no readable HDF5 file ({str(error)[:200]})")

    def dataset(self, file, name):
        """A data set of this very file, by hard links alone."""
        place, found = f"{file.filename}: /{name}", file
        for part in name.split("/"):
            link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
            if not isinstance(link, h5py.HardLink):
                raise damaged(place, "is missing, or a link")
            found = found[part]
        if not isinstance(found, h5py.Dataset) or found.external:
            raise damaged(place, "is no data set of this file")
        return found

    def check_shard(self, rank):
        checkpoint, file = self.checkpoint, self.shards[rank]
        wanted = {"format_version": FORMAT, "rank": rank, "ranks": checkpoint.ranks}
        for name, value in wanted.items():
            if file.attrs.get(name) != value:
                raise damaged(file.filename, f"attribute {name} is {file.attrs.get(name)}, {value} wanted")
        slices = checkpoint.slices[rank]
        stored = self.dataset(file, "slices")
        if stored.shape != (len(slices), 2) or stored.dtype != np.int64 or stored[()].tolist() != [list(s) for s in slices]:
            raise damaged(f"{file.filename}: /slices", "are others than the manifest's")
        n_elem = sum(n for _, n in slices)
        for array in ARRAYS:
            data, place = self.dataset(file, array), f"{file.filename}: /{array}"
            if data.shape != (n_elem,) or data.dtype != np.float32 or data.is_virtual:
                raise damaged(place, f"is {data.dtype} {list(data.shape)}, float32 [{n_elem}] wanted")
            if n_elem and not data.fletcher32:
                raise damaged(place, "has no checksums")
            for begin in range(0, n_elem, AT_ONCE):
                read(data, place, slice(begin, begin + AT_ONCE))

    def check_index(self):
        """{tensor name: first element}, after a look at where each tensor's values come from."""
        tensors = {}
        for array in ARRAYS:
            group = self.index.get(array)
            if not isinstance(group, h5py.Group):
                raise damaged(f"{self.index.filename}: /{array}", "is missing")
            for name in group:
                data = self.dataset(self.index, f"{array}/{name}")
                place = f"{self.index.filename}: /{array}/{name}"
                offset = int(data.attrs.get("offset", -1))
                if data.dtype != np.float32 or not data.is_virtual or not 0 <= offset <= self.checkpoint.n_elem - data.size:
                    raise damaged(place, "is no tensor of this checkpoint")
                for source in data.virtual_sources():
                    if source.file_name not in self.checkpoint.shards or source.dset_name.strip("/") != array:
                        raise damaged(place, f"shows {source.dset_name} of {source.file_name}")
                facts = (offset, data.shape)
                if tensors.setdefault(name, facts) != facts:
                    raise damaged(place, "has another shape or place than in the other arrays")
        for name in tensors:
            for array in ARRAYS:
                self.dataset(self.index, f"{array}/{name}")
        return tensors

    def parts(self, array, name):
        """(first element in the tensor, values of index.h5 in row order), some rows at a time."""
        data = self.index[f"{array}/{name}"]
        place = f"{self.index.filename}: /{array}/{name}"
        width = data.size // data.shape[0] if data.ndim == 2 and data.shape[0] else 1
        step = max(1, AT_ONCE // max(1, width))
        for row in range(0, data.shape[0], step):
            yield row * width, read(data, place, slice(row, row + step)).reshape(-1)

    def from_shards(self, array, begin, n_elem):
        """Elements [begin, begin + n_elem) of the flat buffer."""
        out = np.full(n_elem, np.nan, np.float32)
        for rank, slices in enumerate(self.checkpoint.slices):
            in_shard = 0
            for first, n in slices:
                low, high = max(first, begin), min(first + n, begin + n_elem)
                if low < high:
                    place = f"{self.shards[rank].filename}: /{array}"
                    where = slice(in_shard + low - first, in_shard + high - first)
                    out[low - begin:high - begin] = read(self.shards[rank][array], place, where)
                in_shard += n
        return out

    def check_tensors(self):
        for name, (offset, _) in self.tensors.items():
            for array in ARRAYS:
                for begin, values in self.parts(array, name):
                    if not same_bits(values, self.from_shards(array, offset + begin, values.size)):
                        raise damaged(f"{self.index.filename}: /{array}/{name}", "shows other values than the shards hold")


def read(data, place, where):
    try:
        return data[where]
    except (OSError, RuntimeError) as error:
        raise damaged(place, f"cannot be read ({str(error)[:200]})")


def same_bits(a, b):
    return np.array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))


def check(path):
    checkpoint = Checkpoint(path)
    with Contents(checkpoint) as contents:
        contents.check_tensors()
        n_values = sum(int(np.prod(shape)) for _, shape in contents.tensors.values())
        n_bytes = sum(size for size, _ in checkpoint.files.values())
        lines = [f"{path}: sound", f"  step       {checkpoint.step}", f"  ranks      {checkpoint.ranks}",
                 f"  tensors    {len(contents.tensors)}, {n_values:,} parameters",
                 f"  files      {len(checkpoint.files)}, {n_bytes:,} bytes"]
    if checkpoint.state.get("eval_loss") is not None:
        lines.append(f"  eval loss  {checkpoint.state['eval_loss']}")
    if extra := checkpoint.extra_files():
        lines.append(f"  besides    {', '.join(extra)} (not in the manifest)")
    write_out("\n".join(lines) + "\n", SPACE)


class Differences:
    """Of one array over all tensors."""

    def __init__(self):
        self.equal, self.largest, self.where = True, 0.0, ""

    def add(self, name, a, b):
        if same_bits(a, b):
            return
        self.equal = False
        with np.errstate(invalid="ignore"):
            distance = np.abs(a.astype(np.float64) - b.astype(np.float64))
        distance[a == b] = 0.0  # also of infinities
        largest = float(np.max(np.where(np.isnan(distance), np.inf, distance)))
        if largest > self.largest or not self.where:
            self.largest, self.where = largest, name


def compare(first, second):
    """Prints what differs; True where nothing does."""
    a, b = Checkpoint(first), Checkpoint(second)
    with Contents(a) as of_a, Contents(b) as of_b:
        of_a.check_tensors()
        of_b.check_tensors()
        shapes_a, shapes_b = ({name: shape for name, (_, shape) in c.tensors.items()} for c in (of_a, of_b))
        lines = [f"{first}: step {a.step} of {count_of_ranks(a.ranks)}; {second}: step {b.step} of {count_of_ranks(b.ranks)}"]
        others = [name for name in sorted(shapes_a.keys() | shapes_b.keys()) if shapes_a.get(name) != shapes_b.get(name)]
        lines += [f"  {name}  {shapes_a.get(name, 'missing')} and {shapes_b.get(name, 'missing')}" for name in others]
        equal = not others
        for array in ARRAYS:
            found = Differences()
            for name in shapes_a.keys() - set(others):
                for (_, values_a), (_, values_b) in zip(of_a.parts(array, name), of_b.parts(array, name)):
                    found.add(name, values_a, values_b)
            equal &= found.equal
            count = len(shapes_a.keys() - set(others))
            lines.append(f"  {array:<11}{count} tensors, " + ("equal to the bit" if found.equal else
                         f"largest difference {found.largest:.3g} in {found.where}"))
    write_out("\n".join(lines) + "\n", SPACE)
    return equal


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="tools/verify", description="Check a checkpoint, or compare two tensor by tensor. "
                                     "Exits with 0 where all is sound and equal, 1 where two differ, 5 where one is damaged.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="RUN/checkpoints/step-...")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="compare with this one, of any number of ranks")

    def error(message):
        raise UserError(USAGE, "command line", message, "see tools/verify --help")

    parser.error = error
    parser.print_help = lambda: write_out(parser.format_help(), SPACE)
    return parser.parse_args(argv)


def main(argv):
    def work():
        arguments = parse_arguments(argv)
        if arguments.other is not None:
            return 0 if compare(arguments.checkpoint, arguments.other) else 1
        return check(arguments.checkpoint)

    return exit_code("verify", work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
