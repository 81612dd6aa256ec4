"""Files that appear complete or not at all."""
import contextlib
import os

from .errors import IO, UserError


@contextlib.contextmanager
def whole_file(path):
    """The name under which to write path: it gets its own once all is on the disk, and is gone where that fails."""
    # In the same directory, since a rename does not cross file systems.
    temporary = f"{path}.{os.getpid()}.partial"
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(IO, path, f"cannot be written ({error.strerror or error})", "check the space and the rights of its directory")
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
