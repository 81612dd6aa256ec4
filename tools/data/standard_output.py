"""Standard output and error that may be a full disk, or a pipe whose reader has gone.

A reader that has gone wants no more, which is no error. What else keeps standard output from being written is one line and
exit code 74; standard error is written as far as it goes. After a fault nothing is left to fail when the interpreter ends.
"""
import errno
import os
import sys

from .errors import IO, UserError


def write_out(text, remedy):
    try:
        if sys.stdout is None:  # closed by whoever started the tool
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:
            sys.stdout.write(text.encode("ascii", "backslashreplace").decode())
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        raise UserError(IO, "standard output", f"cannot be written ({error.strerror})", remedy)


def is_terminal():
    return sys.stdout is not None and sys.stdout.isatty()


def write_line_to_stderr(text):
    """One line, whatever file or key named in it: control characters become escapes."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    try:
        if sys.stderr is not None:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def discard(stream):
    """What the stream still holds, and whatever follows, goes nowhere."""
    if stream is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
