"""The safetensors format: u64 header size | JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}} | data.

Little-endian, row-major, offsets relative to the end of the header. numpy has no bfloat16: its bits travel as uint16.
Every read and write is a block of rows, so that no tensor need fit in memory.
"""
import json
import math
import os
import struct
from typing import NamedTuple, Tuple

import numpy as np

from data.errors import BAD_FILE, IO, UserError

MAX_HEADER_BYTES = 100_000_000
MAX_NAME_BYTES = 512
MAX_RANK = 8
MAX_SIZE = (1 << 63) - 1
BLOCK_ELEMENTS = 1 << 22
# What can be read as float32, and written again in one rounding.
STORED = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class Tensor(NamedTuple):
    name: str
    dtype: str  # as in the file: "BF16"
    shape: Tuple[int, ...]
    path: str
    begin: int  # byte in the file

    def rows(self):
        return self.shape[0] if self.shape else 1

    def row_elements(self):
        return math.prod(self.shape[1:])

    def row_blocks(self):
        """[(first row, last row + 1)], each of about BLOCK_ELEMENTS; none of a tensor that has no element."""
        if not self.row_elements():
            return []
        rows = max(1, BLOCK_ELEMENTS // self.row_elements())
        return [(a, min(a + rows, self.rows())) for a in range(0, self.rows(), rows)]


def read_header(path, remedy):
    """{name: Tensor} of one file, in which the tensors fill the data without hole, overlap or tail."""
    def bad(what):
        return UserError(BAD_FILE, path, what, remedy)

    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            if len(start) < 8:
                raise bad(f"{size} bytes found: is no safetensors file")
            header_bytes = struct.unpack("<Q", start)[0]
            if header_bytes > min(size - 8, MAX_HEADER_BYTES):
                raise bad(f"a header of {header_bytes} bytes in a file of {size}: is no whole safetensors file")
            text = file.read(header_bytes)
    except OSError as error:
        raise UserError(IO, path, f"cannot be read ({error.strerror})", "check the rights and the file system")
    data_begin, tensors, ends = 8 + header_bytes, {}, {}
    try:
        header = json.loads(text.decode(), object_pairs_hook=without_duplicates)
        check_metadata(header.pop("__metadata__", None))
        for name, entry in header.items():
            dtype, shape, (begin, end) = checked_entry(name, entry)
            tensors[name], ends[name] = Tensor(name, dtype, shape, path, data_begin + begin), data_begin + end
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise bad(f"the header is damaged ({error})")
    expected = data_begin
    for tensor in sorted(tensors.values(), key=lambda t: (t.begin, ends[t.name])):
        if tensor.dtype not in STORED:
            raise bad(f"{tensor.name} is {tensor.dtype[:20]}, wanted F32, F16, BF16 or F64: a quantized model cannot be merged into")
        wanted = math.prod(tensor.shape) * STORED[tensor.dtype].itemsize
        if not data_begin <= tensor.begin <= ends[tensor.name] <= size or ends[tensor.name] - tensor.begin != wanted:
            raise bad(f"{tensor.name} has bytes [{tensor.begin}, {ends[tensor.name]}) of {size}, its shape takes {wanted}")
        if tensor.begin != expected:
            raise bad(f"{tensor.name} begins at byte {tensor.begin}, wanted {expected}: a hole or an overlap")
        expected = ends[tensor.name]
    if expected != size:
        raise bad(f"{size - expected} bytes found after the last tensor")
    return tensors


def check_metadata(metadata):
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise ValueError("__metadata__ is no object of texts")


def checked_entry(name, entry):
    """(dtype, shape, data_offsets)"""
    if len(name.encode()) > MAX_NAME_BYTES or any(c < " " or c == "\x7f" for c in name):
        raise ValueError(f"{name[:60]!r} is no name: of more than {MAX_NAME_BYTES} bytes, or with control characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"} or not isinstance(entry["dtype"], str):
        raise ValueError(f"{name} has not the keys dtype, shape and data_offsets alone")
    shape, offsets = entry["shape"], entry["data_offsets"]
    for key, sizes in (("shape", shape), ("data_offsets", offsets)):
        # type(), since a bool is an int to isinstance.
        if not isinstance(sizes, list) or not all(type(n) is int and 0 <= n <= MAX_SIZE for n in sizes):
            raise ValueError(f"{key} of {name} is no list of sizes")
    if len(shape) > MAX_RANK or len(offsets) != 2:
        raise ValueError(f"{name} has {len(shape)} dimensions and {len(offsets)} data_offsets, wanted at most {MAX_RANK}, and 2")
    return entry["dtype"], tuple(shape), offsets


def without_duplicates(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def read_rows(tensor, begin, end):
    """Rows [begin, end) as they are stored, [rows, row elements]."""
    stored = STORED[tensor.dtype]
    count = (end - begin) * tensor.row_elements()
    try:
        with open(tensor.path, "rb") as file:
            file.seek(tensor.begin + begin * tensor.row_elements() * stored.itemsize)
            values = np.fromfile(file, stored, count)
    except OSError as error:
        raise UserError(IO, tensor.path, f"cannot be read ({error.strerror})", "check the file system")
    if len(values) != count:
        raise UserError(BAD_FILE, tensor.path, f"ended within {tensor.name}", "is it being written? try again")
    return values.reshape(end - begin, tensor.row_elements())


def to_float32(values, dtype):
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def from_float32(values, dtype):
    """Rounded to nearest, ties to even. What is too large becomes infinite."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(STORED[dtype])
    with np.errstate(over="ignore"):
        return values.astype(STORED[dtype])


def is_finite(values, dtype):
    if dtype == "BF16":
        return not np.any((values & 0x7F80) == 0x7F80)
    return bool(np.isfinite(values).all())


def write_file(path, tensors, dtype, blocks_of):
    """blocks_of(tensor) yields its values as stored in `dtype`, row block by row block. Flushed to the disk."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        begin, end = end, end + math.prod(tensor.shape) * STORED[dtype].itemsize
        header[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in tensors:
                for block in blocks_of(tensor):
                    file.write(np.ascontiguousarray(block).data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(IO, path, f"cannot be written ({error.strerror})", "check the space and the rights of its directory")
