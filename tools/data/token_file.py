"""The token data set, an HDF5 file: documents one after another.

/tokens    unsigned integer [n], the smallest type that holds vocab_size    /offsets  int64 [documents + 1]
/loss_mask uint8 [n], 1 where the token is a target, predicted from the tokens before it in its document
Attributes: format_version = 1, vocab_size, and whatever the writer knows of the origin.
A file appears whole or not at all, and equal contents give equal bytes.
"""
import os
from typing import Dict, NamedTuple, Union

import h5py
import numpy as np

from .errors import BAD_FILE, USAGE, UserError
from .whole_file import whole_file

FORMAT_VERSION = 1
CHUNK_ELEMENTS = 1 << 16


class TokenData(NamedTuple):
    tokens: np.ndarray
    offsets: np.ndarray
    loss_mask: np.ndarray
    attributes: Dict[str, Union[int, str]]

    def document(self, index):
        begin, end = self.offsets[index], self.offsets[index + 1]
        return self.tokens[begin:end], self.loss_mask[begin:end]

    def documents(self):
        return len(self.offsets) - 1


def write_token_file(path, documents, masks, vocab_size, origin):
    """documents: arrays of token ids, masks: arrays of 0 and 1 of the same lengths, origin: further attributes."""
    lengths = np.array([len(d) for d in documents], dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    tokens = np.concatenate(documents).astype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    loss_mask = np.concatenate(masks).astype(np.uint8)
    with whole_file(path) as name, h5py.File(name, "w", track_order=False) as file:
        for key, data in (("tokens", tokens), ("offsets", offsets), ("loss_mask", loss_mask)):
            file.create_dataset(key, data=data, chunks=(min(len(data), CHUNK_ELEMENTS),), compression="gzip",
                                compression_opts=4, shuffle=True, fletcher32=True, track_times=False)
        file.attrs["format_version"] = np.int64(FORMAT_VERSION)
        file.attrs["vocab_size"] = np.int64(vocab_size)
        for key in sorted(origin):
            file.attrs[key] = origin[key]


def read_token_file(path):
    if not os.path.exists(path):
        raise UserError(USAGE, path, "no such file", "make it with tools/prepare")

    def bad(what):
        return UserError(BAD_FILE, path, what, "make it again with tools/prepare")

    try:
        with h5py.File(path, "r") as file:
            for name in ("tokens", "offsets", "loss_mask"):
                if name not in file or not isinstance(file[name], h5py.Dataset):
                    raise bad(f"no data set /{name}")
                if file[name].ndim != 1 or file[name].dtype.kind not in "iu":
                    raise bad(f"/{name} is not a row of integers")
            arrays = {name: file[name][:] for name in ("tokens", "offsets", "loss_mask")}
            attributes = {key: attribute_value(value) for key, value in file.attrs.items()}
    except OSError as error:
        raise bad(f"is not a readable HDF5 file ({error})")
    tokens, offsets, loss_mask = arrays["tokens"], arrays["offsets"].astype(np.int64), arrays["loss_mask"]
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(tokens) or np.any(np.diff(offsets) < 0):
        raise bad("/offsets does not rise from 0 to the number of tokens")
    if len(loss_mask) != len(tokens):
        raise bad(f"/loss_mask has {len(loss_mask)} elements, /tokens {len(tokens)}")
    return TokenData(tokens, offsets, loss_mask, attributes)


def attribute_value(value):
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
