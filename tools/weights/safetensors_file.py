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
        """[(first row, last row + 1)], each of about BLOCK_ELEMENTS."""
        rows = max(1, BLOCK_ELEMENTS // max(1, self.row_elements()))
        return [(a, min(a + rows, self.rows())) for a in range(0, self.rows(), rows)]


def read_header(path, remedy):
    """{name: Tensor} of one file, checked against its length."""
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
    try:
        header = json.loads(text, object_pairs_hook=without_duplicates)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {name: Tensor(name, entry["dtype"], tuple(entry["shape"]), path, 8 + header_bytes + entry["data_offsets"][0])
                   for name, entry in entries.items()}
        ends = {name: 8 + header_bytes + entry["data_offsets"][1] for name, entry in entries.items()}
        whole = all(isinstance(n, int) and n >= 0 for t in tensors.values() for n in t.shape)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise bad(f"the header is damaged ({type(error).__name__}: {error})")
    if not whole:
        raise bad("the header is damaged: a shape is no list of numbers")
    for tensor in tensors.values():
        if tensor.dtype not in STORED:
            raise bad(f"{tensor.name} is {tensor.dtype}, wanted F32, F16, BF16 or F64: a quantized model cannot be merged into")
        wanted = math.prod(tensor.shape) * STORED[tensor.dtype].itemsize
        if not 8 + header_bytes <= tensor.begin <= ends[tensor.name] <= size or ends[tensor.name] - tensor.begin != wanted:
            raise bad(f"{tensor.name} has bytes [{tensor.begin}, {ends[tensor.name]}) of {size}, its shape takes {wanted}")
    return tensors


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
