"""Merges a PEFT LoRA adapter into its base model: a Hugging Face model directory with W + scaling * B A in place of W.

Computed in float32 and rounded once to the dtype of the output, block of rows by block of rows: memory is that of a few blocks,
whatever the model. The directory appears whole or not at all. See data/errors.py for the exit codes.
"""
import argparse
import fnmatch
import json
import os
import re
import shutil
import signal
import sys
import time

import numpy as np

from data.display import ProgressBar
from data.errors import BAD_FILE, IO, USAGE, UserError
from data.model_dir import read_json, sha256_of_file
from data.standard_output import write_line_to_stderr, write_out
from weights.model_files import AGAIN, INDEX, check_head, plan_shards, read_model_weights, shard_name
from weights.peft_adapter import check_against_model, read_adapter, read_pair
from weights.safetensors_file import STORED, from_float32, is_finite, read_rows, to_float32, write_file

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
COPIED = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.tiktoken",
          "spiece.model", "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="tools/merge", description="Merge a PEFT LoRA adapter into its base model.")
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="Hugging Face model directory, not quantized")
    parser.add_argument("adapter_dir", metavar="ADAPTER_DIR", help="PEFT adapter directory, such as RUN_DIR/adapter")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="model directory to write")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16", help="of the weights written (default: bfloat16)")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="a file holds at most this (default: 5GB)")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that OUT_DIR holds")

    def error(message):
        raise UserError(USAGE, "command line", message, "see tools/merge --help")

    parser.error = error
    parser.print_help = lambda: write_out(parser.format_help(), "check the space where it goes")
    arguments = parser.parse_args(argv)
    size = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([KMG]I?B)?", arguments.max_shard_size.upper())
    arguments.max_shard_bytes = int(float(size[1]) * UNITS[size[2] or ""]) if size else 0
    if arguments.max_shard_bytes < 1:
        error(f"--max-shard-size is {arguments.max_shard_size[:40]!r}, wanted a size as 5GB or 500MB")
    if not arguments.out_dir:
        error("OUT_DIR is empty, wanted the directory to write")
    # Through a link, the directory behind it is meant.
    arguments.out_dir = os.path.realpath(arguments.out_dir)
    return arguments


def check_out_dir(arguments):
    out = arguments.out_dir
    if os.path.exists(out) and not os.path.isdir(out):
        raise UserError(USAGE, out, "is a file", "name the directory to write")
    if not os.path.isdir(os.path.dirname(out)):
        raise UserError(USAGE, os.path.dirname(out), "no such directory", "make it, or write to another")
    for what, path in (("MODEL_DIR", arguments.model_dir), ("ADAPTER_DIR", arguments.adapter_dir)):
        source = os.path.realpath(path)
        if out == source or source.startswith(os.path.join(out, "")):
            raise UserError(USAGE, out, f"is or holds {what}", "write to another directory")
    if os.path.isdir(out) and os.listdir(out):
        if not arguments.overwrite:
            raise UserError(USAGE, out, "is not empty", "write to another directory, or say --overwrite")
        # A slip of the hand must not cost a home directory.
        if not os.path.isfile(os.path.join(out, "config.json")) or any(entry.is_dir() for entry in os.scandir(out)):
            raise UserError(USAGE, out, "holds something else than a model, and is not replaced", "write to another directory")


def merge(arguments):
    """Returns the line that tells what was written; from then on no signal ends the process."""
    started = time.monotonic()
    if not os.path.isdir(arguments.model_dir):
        raise UserError(USAGE, arguments.model_dir, "no such directory", "name a Hugging Face model directory")
    config_file = os.path.join(arguments.model_dir, "config.json")
    config = read_json(config_file, "name a Hugging Face model directory")
    if config.get("quantization_config"):
        raise UserError(BAD_FILE, config_file, "quantization_config found: a quantized model cannot be merged into",
                        "merge into the model that it was made from")
    adapter, adapter_config = read_adapter(arguments.adapter_dir)
    check_out_dir(arguments)
    weights = read_model_weights(arguments.model_dir)
    check_head(arguments.model_dir, config, weights)
    check_against_model(adapter, adapter_config, weights, os.path.join(arguments.adapter_dir, "adapter_model.safetensors"))

    dtype = DTYPES[arguments.dtype]
    shards = plan_shards(weights.values(), STORED[dtype].itemsize, arguments.max_shard_bytes)
    total = sum(t.rows() * t.row_elements() for t in weights.values()) * STORED[dtype].itemsize
    free = shutil.disk_usage(os.path.dirname(arguments.out_dir)).free
    if total > free:
        raise UserError(IO, arguments.out_dir, f"{total / 1e9:.2f} GB are to be written, {free / 1e9:.2f} GB are free there",
                        "make room, or write to another file system")
    set_dtype(config, arguments.dtype)
    config_text = json_text(config_file, config)
    warning = tokenizer_warning(arguments)
    # Beside it, since a rename does not cross file systems.
    partial = f"{arguments.out_dir}.{os.getpid()}.partial"
    try:
        os.mkdir(partial)
        write_weights(partial, shards, dtype, adapter, total)
        write_index(partial, shards, total)
        write_text(os.path.join(partial, "config.json"), config_text)
        copy_files(arguments.model_dir, partial)
        for number in SIGNALS:  # "nothing was written" would be untrue
            signal.signal(number, signal.SIG_IGN)
        put_in_place(partial, arguments.out_dir)
    except OSError as error:
        raise UserError(IO, arguments.out_dir, f"cannot be written ({error})", "check the space and the rights of its directory")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if warning:
        write_line_to_stderr(warning)
    return (f"{arguments.out_dir}: {len(weights)} tensors, {len(adapter.pairs)} of them merged (r = {adapter.r}, scaling = "
            f"{adapter.scaling:g}), {arguments.dtype}, {total:,} bytes in {len(shards)} file{'s' if len(shards) > 1 else ''}, "
            f"{time.monotonic() - started:.1f} s\n")


def write_weights(directory, shards, dtype, adapter, total):
    done = 0
    with ProgressBar("merge, MB", total // 10**6) as bar:
        def blocks_of(tensor):
            nonlocal done
            for block in merged_blocks(tensor, dtype, adapter):
                done += block.nbytes
                bar.update(done // 10**6)
                yield block

        for index, tensors in enumerate(shards):
            write_file(os.path.join(directory, shard_name(index, len(shards))), tensors, dtype, blocks_of)


def merged_blocks(tensor, dtype, adapter):
    pair = adapter.pairs.get(tensor.name)
    if pair:
        a, b = read_pair(pair)
    for begin, end in tensor.row_blocks():
        stored = read_rows(tensor, begin, end)
        if pair or tensor.dtype != dtype:
            with np.errstate(over="ignore", invalid="ignore"):  # found below
                values = to_float32(stored, tensor.dtype)
                if pair:
                    values += np.float32(adapter.scaling) * (b[begin:end] @ a)
                stored = from_float32(values, dtype)
        if not is_finite(stored, dtype):
            raise UserError(BAD_FILE, tensor.path, f"{tensor.name} would hold numbers that are not finite",
                            "choose --dtype bfloat16" if dtype == "F16" else "take the model from its publisher again")
        yield stored


def write_index(directory, shards, total):
    if len(shards) == 1:
        return
    weight_map = {t.name: shard_name(i, len(shards)) for i, tensors in enumerate(shards) for t in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_text(os.path.join(directory, INDEX), json.dumps(index, indent=2) + "\n")


def set_dtype(config, dtype):
    """transformers 4 writes torch_dtype, 5 writes dtype, and both read both."""
    for key in [key for key in ("torch_dtype", "dtype") if key in config] or ["torch_dtype"]:
        config[key] = dtype


def json_text(path, value):
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        text.encode()
    except (RecursionError, ValueError) as error:  # nested deeply; half a surrogate pair
        raise UserError(BAD_FILE, path, f"cannot be written again ({str(error)[:100]})", AGAIN)
    return text


def write_text(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def copy_files(model_dir, directory):
    for entry in sorted(os.scandir(model_dir), key=lambda entry: entry.name):
        if entry.is_file() and any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in COPIED):
            shutil.copyfile(entry.path, os.path.join(directory, entry.name))


def put_in_place(partial, out):
    if not (os.path.isdir(out) and os.listdir(out)):
        os.rename(partial, out)
        return
    old = f"{out}.{os.getpid()}.old"
    os.rename(out, old)
    try:
        os.rename(partial, out)
    except BaseException:
        os.rename(old, out)
        raise
    try:
        shutil.rmtree(old)
    except OSError as error:
        raise UserError(IO, old, f"cannot be removed ({error.strerror}), the model before", f"remove it; {out} is written")


def tokenizer_warning(arguments):
    theirs, ours = (os.path.join(d, "tokenizer.json") for d in (arguments.adapter_dir, arguments.model_dir))
    if os.path.isfile(theirs) and not (os.path.isfile(ours) and sha256_of_file(theirs) == sha256_of_file(ours)):
        return f"merge: warning: {theirs}: another tokenizer than the model's, which was copied"
    return ""


def main(argv):
    before = [(number, signal.signal(number, signal.default_int_handler)) for number in SIGNALS]
    try:
        arguments = parse_arguments(argv)
        write_out(merge(arguments), f"{arguments.out_dir} is written all the same")
    except UserError as error:
        write_line_to_stderr(f"merge: error: {error}")
        return error.code
    except OSError as error:
        write_line_to_stderr(f"merge: error: {error.filename}: cannot be read ({error.strerror}); check the rights and the file system")
        return IO
    except KeyboardInterrupt:
        write_line_to_stderr("merge: stopped; nothing was written")
        return 130
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
