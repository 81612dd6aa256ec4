"""A token data set of random tokens, every one a target: for measuring speed, where what is learned does not matter."""
import argparse
import sys

import numpy as np

from data.command import exit_code
from data.errors import USAGE, UserError
from data.token_file import write_token_file


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="tools/random_tokens", description="Make a token data set of random tokens.")
    parser.add_argument("output", metavar="OUTPUT.h5")
    parser.add_argument("--rows", type=int, default=64, help="documents (default 64)")
    parser.add_argument("--length", type=int, default=4096, help="tokens of each (default 4096)")
    parser.add_argument("--vocab", type=int, default=128256, help="vocabulary size of the model (default 128256)")

    def error(message):
        raise UserError(USAGE, "command line", message, "see tools/random_tokens --help")

    parser.error = error
    arguments = parser.parse_args(argv)
    for name in ("rows", "length", "vocab"):
        if getattr(arguments, name) < 1:
            error(f"--{name} is {getattr(arguments, name)}, wanted 1 or more")
    return arguments


def main(argv):
    def work():
        arguments = parse_arguments(argv)
        random = np.random.default_rng(3407)
        documents = [random.integers(0, arguments.vocab, arguments.length) for _ in range(arguments.rows)]
        write_token_file(arguments.output, documents, [np.ones(arguments.length)] * arguments.rows, arguments.vocab, {})
        print(f"{arguments.output}: {arguments.rows} documents of {arguments.length} random tokens")

    return exit_code("random_tokens", work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
