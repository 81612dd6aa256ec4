"""Holds an adapter's logits in ./utrain against PEFT's: the logits.D of a dump beside base + adapter in transformers.

The dump is that of the same model, data and adapter: ./utrain INPUT.toml --lora.init_from=ADAPTER_DIR --dump DUMP. PEFT computes
in float32, a document at a time; --dtype bfloat16 shows how far PEFT's own bfloat16 is from a float32 dump. Needs an environment
of its own (MODULES). See data/errors.py for the exit codes.
"""
import argparse
import importlib.util
import math
import os
import sys

from data.command import exit_code
from data.errors import BAD_FILE, USAGE, UserError
from data.standard_output import write_out

MODULES = ("torch", "transformers", "peft", "h5py")
DUMP_AGAIN = "dump the logits again: ./utrain INPUT.toml --lora.init_from=ADAPTER_DIR --dump FILE"


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="tools/check_adapter", description="Compare the logits of a dump with PEFT's.")
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="Hugging Face model directory")
    parser.add_argument("adapter_dir", metavar="ADAPTER_DIR", help="PEFT adapter directory, such as RUN_DIR/adapter")
    parser.add_argument("data", metavar="DATA.h5", help="the token data set of the dump (data.train)")
    parser.add_argument("dump", metavar="DUMP.safetensors", help="what ./utrain ... --dump wrote")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="PEFT's (default: float32)")
    parser.add_argument("--device", help="PEFT's, as torch names it (default: cuda where there is one)")

    def error(message):
        raise UserError(USAGE, "command line", message, "see tools/check_adapter --help")

    parser.error = error
    parser.print_help = lambda: write_out(parser.format_help(), "check the space where it goes")
    arguments = parser.parse_args(argv)
    for path in (arguments.model_dir, arguments.adapter_dir):
        if not os.path.isdir(path):
            raise UserError(USAGE, path, "no such directory", "check the path")
    if not os.path.isfile(arguments.dump):
        raise UserError(USAGE, arguments.dump, "no such file", DUMP_AGAIN)
    return arguments


def check_environment(modules=MODULES):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(USAGE, sys.executable, f"no {', '.join(missing)} found, wanted an environment with {', '.join(MODULES)}",
                        f"make one: python3 -m venv ENV && ENV/bin/pip install {' '.join(MODULES)}; then "
                        "PYTHON=ENV/bin/python tools/check_adapter ...")


def read_documents(data_path, dump_path):
    """{document: (token ids, logits [tokens, vocabulary])} of the dump."""
    from data.token_file import read_token_file
    from weights.safetensors_file import read_header, read_rows, to_float32

    data = read_token_file(data_path)
    found = {}
    for name, tensor in read_header(dump_path, DUMP_AGAIN).items():
        kind, _, number = name.partition(".")
        if kind != "logits" or not number.isdecimal():
            continue
        document, length = int(number), tensor.rows()
        if len(tensor.shape) != 2 or document >= data.documents() or length > len(data.document(document)[0]):
            raise UserError(BAD_FILE, dump_path, f"{name} has shape {list(tensor.shape)}, no document of {data_path} has that",
                            "name the data set that was dumped")
        ids = data.document(document)[0][:length]  # a document that was cut has fewer rows
        found[document] = ids, to_float32(read_rows(tensor, 0, length), tensor.dtype)
    if not found:
        raise UserError(BAD_FILE, dump_path, "holds no logits", DUMP_AGAIN + ", with less in a step where they are too many")
    return dict(sorted(found.items()))


class Difference:
    """Of arrays seen one after the other: the largest, and the Frobenius norm relative to that of what was wanted."""

    def __init__(self):
        self.largest = self.largest_wanted = self.squares = self.wanted_squares = 0.0

    def add(self, found, wanted):
        difference = (found.astype("float64") - wanted).ravel()
        self.largest = max(self.largest, float(abs(difference).max()), key=lambda x: (math.isnan(x), x))  # a NaN stays
        self.largest_wanted = max(self.largest_wanted, float(abs(wanted).max()))
        self.squares += float(difference @ difference)
        self.wanted_squares += float((wanted.astype("float64") ** 2).sum())

    def relative(self):
        return math.sqrt(self.squares / self.wanted_squares) if self.wanted_squares else math.inf

    def line(self, documents, dtype):
        return (f"{documents} documents: largest difference {self.largest:.2g} of logits up to {self.largest_wanted:.3g} in size, "
                f"relative {self.relative():.2g}, beside PEFT in {dtype}\n")


def peft_logits(arguments):
    """ids -> logits, by transformers and PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        dtype = getattr(torch, arguments.dtype)
        model = AutoModelForCausalLM.from_pretrained(arguments.model_dir, dtype=dtype, local_files_only=True)
        model = PeftModel.from_pretrained(model, arguments.adapter_dir, local_files_only=True).to(device).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(BAD_FILE, arguments.adapter_dir, f"PEFT cannot load it on {arguments.model_dir} ({str(error)[:200]})",
                        "name the model it was trained on")

    def logits_of(ids):
        with torch.no_grad():
            row = torch.tensor(ids.astype("int64"), device=device)[None]
            return model(input_ids=row).logits[0].float().cpu().numpy()

    return logits_of


def check(arguments):
    documents = read_documents(arguments.data, arguments.dump)
    logits_of = peft_logits(arguments)
    difference = Difference()
    for document, (ids, found) in documents.items():
        wanted = logits_of(ids)
        if wanted.shape != found.shape:
            raise UserError(BAD_FILE, arguments.dump, f"logits.{document} has shape {list(found.shape)}, PEFT's {list(wanted.shape)}",
                            "name the model that was dumped")
        difference.add(found, wanted)
    return difference.line(len(documents), arguments.dtype)


def main(argv):
    def work():
        arguments = parse_arguments(argv)
        check_environment()
        write_out(check(arguments), "check the space where it goes")

    return exit_code("check_adapter", work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
