#!/usr/bin/env python3
"""Writes CASE/tokens.h5, the token data set of a reference case, from its CASE/golden.safetensors.

usage: tools/.venv/bin/python tools/golden_tokens.py CASE_DIR...

tokens = input_ids, offsets = offsets, loss_mask = 1 where the label is kept (not -100).
"""
import json
import os
import struct
import sys

import numpy as np

from data.token_file import write_token_file


def read_int64_tensor(path, name):
    """One I64 tensor of a safetensors file: u64 header size, JSON header, data."""
    with open(path, "rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(header_bytes))[name]
        assert entry["dtype"] == "I64", f"{path}: {name} is {entry['dtype']}, wanted I64"
        begin, end = entry["data_offsets"]
        file.seek(8 + header_bytes + begin)
        return np.frombuffer(file.read(end - begin), dtype="<i8").reshape(entry["shape"])


def main(case_dirs):
    if not case_dirs:
        sys.exit(__doc__)
    for case_dir in case_dirs:
        golden = os.path.join(case_dir, "golden.safetensors")
        input_ids, labels, offsets = (read_int64_tensor(golden, n) for n in ("input_ids", "labels", "offsets"))
        with open(os.path.join(case_dir, "model", "config.json"), encoding="utf-8") as file:
            vocab_size = json.load(file)["vocab_size"]
        bounds = list(zip(offsets, offsets[1:]))
        write_token_file(os.path.join(case_dir, "tokens.h5"), [input_ids[a:b] for a, b in bounds],
                         [labels[a:b] != -100 for a, b in bounds], vocab_size, {})
        print(f"{case_dir}: {len(bounds)} documents, {len(input_ids)} tokens, {int((labels != -100).sum())} kept labels")


if __name__ == "__main__":
    main(sys.argv[1:])
