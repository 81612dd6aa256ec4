"""Writes the input.toml that corresponds to an Accelerate YAML or a DeepSpeed JSON file, each value with the key it comes from.

What has no counterpart, is left to the Trainer, or contradicts itself is listed at the end of the file and on standard error.
The file appears whole or not at all. See data/errors.py for the exit codes.
"""
import argparse
import os
import sys

from data.command import exit_code
from data.errors import USAGE, UserError
from data.standard_output import write_line_to_stderr, write_out
from data.whole_file import whole_file
from deepspeed.input_text import input_text, remarks
from deepspeed.translation import translate

CHECK_OUTPUT = "check the space where it goes"


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="tools/import_deepspeed",
                                     description="Translate an Accelerate or DeepSpeed configuration into sections of input.toml.")
    parser.add_argument("file", metavar="FILE", help="default_config.yaml of Accelerate, or ds_config.json of DeepSpeed")
    parser.add_argument("-o", "--output", metavar="input.toml", help="file to write (default: standard output)")
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks that a DeepSpeed file is for; Accelerate's says it")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")

    def error(message):
        raise UserError(USAGE, "command line", message, "see tools/import_deepspeed --help")

    parser.error = error
    parser.print_help = lambda: write_out(parser.format_help(), CHECK_OUTPUT)
    arguments = parser.parse_args(argv)
    if arguments.ranks is not None and arguments.ranks < 1:
        error(f"--ranks is {arguments.ranks}, wanted at least 1")
    output = arguments.output
    if output is not None:
        directory = os.path.dirname(os.path.abspath(output))
        if not os.path.isdir(directory):
            raise UserError(USAGE, directory, "no such directory", "make it, or write to another")
        if os.path.isdir(output) or os.path.exists(output) and os.path.realpath(output) == os.path.realpath(arguments.file):
            raise UserError(USAGE, output, "is a directory, or the input", "name the file to write")
        if os.path.exists(output) and not arguments.overwrite:
            raise UserError(USAGE, output, "is there already", "name another file, or say --overwrite")
    return arguments


def write_text(path, text):
    with whole_file(path) as name, open(name, "w", encoding="utf-8") as file:
        file.write(text)


def import_deepspeed(arguments):
    translation = translate(arguments.file, arguments.ranks)
    text = input_text(translation, arguments.output or "input.toml")
    if arguments.output is None:
        write_out(text, CHECK_OUTPUT)
    else:
        write_text(arguments.output, text)
        write_out(f"{arguments.output}: {len(translation.settings)} keys from {' and '.join(translation.sources)}\n",
                  f"{arguments.output} is written all the same")
    for title, entries in remarks(translation):
        if entries:
            write_line_to_stderr(f"import_deepspeed: {title}")
            for entry in entries:
                write_line_to_stderr(f"  {entry}")


def main(argv):
    return exit_code("import_deepspeed", lambda: import_deepspeed(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
