"""How a command ends: what its users can mend is one line on standard error and an exit code, never a traceback."""
from .errors import UserError
from .standard_output import write_line_to_stderr


def exit_code(name, work):
    """Of work(): its own, where it returns one; of an interrupted command 130, as a shell has it."""
    try:
        return work() or 0
    except UserError as error:
        write_line_to_stderr(f"{name}: error: {error}")
        return error.code
    except KeyboardInterrupt:
        return 130
