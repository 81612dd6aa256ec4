"""Shows documents of a token data set as text, with the targets marked, and the counts and attributes of the file."""
import argparse
import sys

import numpy as np

from data.command import exit_code
from data.display import marked_document, printable, statistics_lines
from data.errors import BAD_FILE, USAGE, UserError
from data.model_dir import load_model_dir
from data.standard_output import is_terminal, write_line_to_stderr, write_out
from data.token_file import read_token_file

SPACE = "check the space where it goes"


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="tools/inspect", description="Show documents of a token data set, targets marked.")
    parser.add_argument("data", metavar="DATA.h5", help="a token data set")
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="the Hugging Face directory whose tokenizer it was made with")
    parser.add_argument("--n", type=int, default=3, help="how many documents, spread over the file (default 3)")
    parser.add_argument("--document", type=int, metavar="K", help="only the document with this number, from 0")

    def error(message):
        raise UserError(USAGE, "command line", message, "see tools/inspect --help")

    parser.error = error
    parser.print_help = lambda: write_out(parser.format_help(), SPACE)
    arguments = parser.parse_args(argv)
    if arguments.n < 0:
        error(f"--n is {arguments.n}, wanted 0 or more")
    return arguments


def inspect(arguments):
    data = read_token_file(arguments.data)
    model = load_model_dir(arguments.model_dir)
    count = data.documents()
    if arguments.document is not None and not 0 <= arguments.document < count:
        raise UserError(USAGE, f"--document {arguments.document}", f"the file has {count} documents",
                        f"name one from 0 to {count - 1}")
    if len(data.tokens) and not 0 <= int(data.tokens.min()) <= int(data.tokens.max()) < model.vocab_size:
        raise UserError(BAD_FILE, arguments.data, f"token ids go from {data.tokens.min()} to {data.tokens.max()}, but the "
                        f"model's vocab_size is {model.vocab_size}", "name the model that it was prepared for")

    lines = statistics_lines(data.offsets, data.loss_mask)
    lines += [f"{key} = {printable(str(data.attributes[key]))}" for key in sorted(data.attributes)]
    write_out("".join([arguments.data + "\n", *(f"  {line}\n" for line in lines)]), SPACE)
    if data.attributes.get("tokenizer_sha256", model.tokenizer_sha256) != model.tokenizer_sha256:
        write_line_to_stderr(f"inspect: warning: {arguments.data}: was made with another tokenizer than that of "
                             f"{arguments.model_dir}; the text below may be wrong")

    colour = is_terminal()
    chosen = [arguments.document] if arguments.document is not None else spread(count, arguments.n)
    for index in chosen:
        ids, mask = data.document(index)
        write_out(f"--- document {index}: {len(ids)} tokens, {int(np.count_nonzero(mask[1:]))} targets"
                  f" ({'green' if colour else 'between [[ and ]]'})\n{marked_document(model.tokenizer, ids, mask, colour)}\n", SPACE)


def spread(count, wanted):
    return sorted({count * i // wanted for i in range(wanted)}) if count and wanted else []


def main(argv):
    return exit_code("inspect", lambda: inspect(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
