"""Makes a token data set from conversations: JSON lines in, HDF5 out, with the model's own tokenizer and chat template.

The targets are the replies of the assistant and the token that ends each of them (data/reply_spans.py). Whatever is left out
is counted, with its reason. The output appears whole or not at all. See data/errors.py for the exit codes.
"""
import argparse
import hashlib
import os
import re
import signal
import sys
import time
from collections import Counter, namedtuple

import numpy as np

from data import VERSION
from data.chat_template import TemplateFault
from data.display import ProgressBar, marked_document, statistics_lines
from data.encoding import MarkedText, encode
from data.errors import BAD_FILE, USAGE, UserError
from data.model_dir import load_model_dir, sha256_of_file
from data.records import (FORMATS, BadRecord, Conversation, agree_on_format, parse_record, read_records)
from data.reply_spans import ReplyFinder, Uncertain
from data.standard_output import is_terminal, write_line_to_stderr, write_out
from data.token_file import write_token_file

BATCH = 512           # records encoded at once
SHOWN_BAD_RECORDS = 5

Document = namedtuple("Document", "line ids mask")


class Counts:
    """What happened to the records, for the report."""

    def __init__(self):
        self.bad, self.refused = [], []  # (line, reason)
        self.without_target = self.too_long = self.cut = self.spelled = self.ended_replies = self.replies = self.passages = 0


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        prog="tools/prepare", description="Make a token data set from JSON lines with a model's tokenizer and chat template.",
        epilog="Formats: messages, sharegpt, alpaca, prompt_completion, text; described in tools/data/records.py.")
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="Hugging Face directory with tokenizer.json and config.json")
    parser.add_argument("input", metavar="INPUT.jsonl", help="one JSON object a line")
    parser.add_argument("output", metavar="OUTPUT.h5", help="the token data set to write")
    parser.add_argument("--format", choices=("auto",) + FORMATS, default="auto", help="auto: by the keys of the first record")
    parser.add_argument("--max-len", type=int, metavar="N", help="longest document in tokens (default: any)")
    parser.add_argument("--too-long", choices=("error", "truncate", "drop"), default="error",
                        help="what to do with documents longer than --max-len")

    def error(message):
        raise UserError(USAGE, "command line", message, "see tools/prepare --help")

    parser.error = error
    parser.print_help = lambda: write_out(parser.format_help(), "check the space where it goes")
    arguments = parser.parse_args(argv)
    if arguments.max_len is not None and arguments.max_len < 2:
        error(f"--max-len is {arguments.max_len}, wanted at least 2")
    directory = os.path.dirname(os.path.abspath(arguments.output))
    if not os.path.isdir(directory):
        raise UserError(USAGE, directory, "no such directory", "make it, or write to another")
    if os.path.isdir(arguments.output):
        raise UserError(USAGE, arguments.output, "is a directory", "name the file to write")
    if os.path.realpath(arguments.output) == os.path.realpath(arguments.input):
        raise UserError(USAGE, arguments.output, "is the input", "name another output")
    return arguments


def prepare(arguments):
    started = time.monotonic()
    model = load_model_dir(arguments.model_dir)
    records = read_records(arguments.input)
    form = agree_on_format(arguments.input, records) if arguments.format == "auto" else arguments.format
    counts = Counts()
    documents = make_documents(model, records, form, counts, arguments.input)
    documents = keep_trainable(fit_length(documents, arguments, counts), counts)
    if not documents:
        show_left_out(counts, arguments.input)
        raise UserError(BAD_FILE, arguments.input, "no record gives a document with targets", "see the reasons above")

    origin = {"format": form, "source_sha256": sha256_of_file(arguments.input), "tokenizer_sha256": model.tokenizer_sha256,
              "tool": f"utrain prepare {VERSION}"}
    if model.template:
        origin["chat_template_sha256"] = hashlib.sha256(model.template.sources["default"].encode()).hexdigest()
    write_token_file(arguments.output, [d.ids for d in documents], [d.mask for d in documents], model.vocab_size, origin)
    report(arguments, model, form, len(records), documents, counts, time.monotonic() - started)


def make_documents(model, records, form, counts, path):
    finder = ReplyFinder(model.template, model.special_tokens) if model.template else None
    special = re.compile("|".join(map(re.escape, model.special_tokens))) if model.special_tokens else None
    documents = []
    with ProgressBar("prepare", len(records)) as bar:
        for begin in range(0, len(records), BATCH):
            lines, marked_texts = [], []
            for line, record in records[begin:begin + BATCH]:
                try:
                    parsed = parse_record(record, form, finder is not None)
                    marked_texts.append(marked_text(parsed, finder, counts))
                except BadRecord as bad:
                    counts.bad.append((line, str(bad)))
                    continue
                except Uncertain as uncertain:
                    counts.refused.append((line, str(uncertain)))
                    continue
                except TemplateFault as fault:
                    counts.refused.append((line, f"the chat template refuses it: {fault}"))
                    continue
                lines.append(line)
                counts.spelled += bool(special) and any(special.search(text) for text in texts_of(parsed))
            documents += [Document(line, *tokens) for line, tokens in zip(lines, encode(model, marked_texts))]
            bar.update(min(begin + BATCH, len(records)))
    return documents


def marked_text(parsed, finder, counts):
    if not isinstance(parsed, Conversation):
        text = parsed.context + parsed.text
        counts.passages += 1
        return MarkedText(text, [(len(parsed.context), len(text))], True)
    if finder is None:
        raise UserError(USAGE, "MODEL_DIR", "the model has no chat template, and the records are conversations",
                        "use a model with one (chat_template.jinja), or give prompt and completion as texts")
    text, spans = finder.find(parsed.messages, parsed.tools, parsed.first_target)
    counts.replies += len(spans)
    counts.ended_replies += sum(span.ended for span in spans)
    return MarkedText(text, [(span.begin, span.end) for span in spans], False)


def texts_of(parsed):
    if isinstance(parsed, Conversation):
        return [message["content"] for message in parsed.messages]
    return [parsed.context, parsed.text]


def fit_length(documents, arguments, counts):
    limit = arguments.max_len
    if limit is None:
        return documents
    long = [d for d in documents if len(d.ids) > limit]
    if long and arguments.too_long == "error":
        longest = max(long, key=lambda d: len(d.ids))
        raise UserError(BAD_FILE, f"{arguments.input}:{longest.line}", f"{len(long)} of {len(documents)} documents are longer "
                        f"than --max-len {limit}, this one the longest with {len(longest.ids)} tokens",
                        "raise --max-len, or choose --too-long truncate or drop")
    if arguments.too_long == "drop":
        counts.too_long = len(long)
        return [d for d in documents if len(d.ids) <= limit]
    counts.cut = len(long)
    return [Document(d.line, d.ids[:limit], d.mask[:limit]) for d in documents]


def keep_trainable(documents, counts):
    kept = [d for d in documents if d.mask.any()]
    counts.without_target = len(documents) - len(kept)
    return kept


def report(arguments, model, form, records, documents, counts, seconds):
    offsets = np.cumsum([0] + [len(d.ids) for d in documents])
    statistics = statistics_lines(offsets, np.concatenate([d.mask for d in documents]))
    colour = is_terminal()
    lines = [f"{arguments.output}: {form}, {records:,} records in {seconds:.1f} s ({os.path.getsize(arguments.output):,} bytes)",
             *("  " + line for line in statistics),
             f"line {documents[0].line}, its targets {'in green' if colour else 'between [[ and ]]'}:",
             marked_document(model.tokenizer, documents[0].ids, documents[0].mask, colour)]
    write_out("\n".join(lines) + "\n", f"{arguments.output} is written all the same")
    show_left_out(counts, arguments.input)
    if counts.spelled:
        warn(f"{counts.spelled} records hold text that spells a special token; it is encoded as that token")
    if counts.replies and counts.ended_replies == 0:
        warn("NO REPLY ENDS WITH A SPECIAL TOKEN: the model would never learn to stop; check the chat template")
    elif counts.ended_replies < counts.replies:
        warn(f"{counts.replies - counts.ended_replies} of {counts.replies} replies are not ended by a special token")
    if counts.passages and model.eos_id is None:
        warn("THE MODEL HAS NO EOS TOKEN: it would never learn to stop; set eos_token in tokenizer_config.json")
    if model.template and model.template.wrote_date:
        warn("the chat template writes today's date; SOURCE_DATE_EPOCH fixes it")


def show_left_out(counts, path):
    for what, rows in (("bad records left out", counts.bad), ("records refused", counts.refused)):
        if rows:
            warn(f"{len(rows)} {what}")
            for line, reason in rows[:SHOWN_BAD_RECORDS]:
                write_line_to_stderr(f"  {path}:{line}: {reason}")
            if len(rows) > SHOWN_BAD_RECORDS:
                write_line_to_stderr(f"  and {len(rows) - SHOWN_BAD_RECORDS} more")
    for number, what in ((counts.too_long, "documents dropped: longer than --max-len"),
                         (counts.cut, "documents cut to --max-len"),
                         (counts.without_target, "documents dropped: without a target")):
        if number:
            warn(f"{number} {what}")


def warn(text):
    write_line_to_stderr(f"prepare: warning: {text}")


def main(argv):
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        prepare(parse_arguments(argv))
    except UserError as error:
        write_line_to_stderr(f"prepare: error: {error}")
        return error.code
    except KeyboardInterrupt:
        write_line_to_stderr("prepare: stopped; nothing was written")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
