"""What a person sees of a token data set: documents with their targets marked, statistics, and a progress bar."""
import re
import sys
import time

import numpy as np

GREEN, PLAIN = "\x1b[32m", "\x1b[0m"


def marked_document(tokenizer, ids, mask, colour):
    """The document as text, its targets green, or between [[ and ]] where there is no colour."""
    ids = [int(i) for i in ids]
    opening, closing = (GREEN, PLAIN) if colour else ("[[", "]]")
    pieces, begin = [], 0
    changes = [i for i in range(1, len(ids)) if bool(mask[i]) != bool(mask[i - 1])] + [len(ids)]
    for end in changes:
        piece = printable(decoded_run(tokenizer, ids, begin, end))
        pieces.append(opening + piece + closing if begin < end and mask[begin] else piece)
        begin = end
    return "".join(pieces)


def decoded_run(tokenizer, ids, begin, end):
    """Tokens [begin, end) as they read in their document: some decoders drop the space before a first word."""
    context = tokenizer.decode(ids[:begin], skip_special_tokens=False)
    whole = tokenizer.decode(ids[:end], skip_special_tokens=False)
    if whole.startswith(context):
        return whole[len(context):]
    return tokenizer.decode(ids[begin:end], skip_special_tokens=False)


def printable(text):
    """Control characters as escapes, so that data cannot steer the terminal."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match.group()):02x}", text)


def statistics_lines(offsets, loss_mask):
    lengths = np.diff(offsets)
    tokens, targets = int(offsets[-1]), int(np.count_nonzero(loss_mask))
    if not len(lengths):
        return ["documents  0"]
    p50, p95 = (int(np.percentile(lengths, p, method="higher")) for p in (50, 95))
    return [f"documents  {len(lengths):,}", f"tokens     {tokens:,}", f"targets    {targets:,} ({targets / max(1, tokens):.0%})",
            f"lengths    mean {tokens / len(lengths):.1f}, p50 {p50}, p95 {p95}, longest {int(lengths.max())}"]


class ProgressBar:
    """A bar on standard error while it is a terminal, nothing otherwise. Use as a context manager."""

    WIDTH = 40

    def __init__(self, title, total):
        self.title, self.total, self.shown = title, total, 0.0
        self.visible = sys.stderr.isatty()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.visible:
            sys.stderr.write("\r\x1b[K")

    def update(self, done):
        now = time.monotonic()
        if not self.visible or now - self.shown < 0.1 and done < self.total:
            return
        self.shown = now
        filled = self.WIDTH * done // max(1, self.total)
        sys.stderr.write(f"\r{self.title} [{'#' * filled}{'.' * (self.WIDTH - filled)}] {done:,}/{self.total:,}")
        sys.stderr.flush()
