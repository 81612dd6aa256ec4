"""Faults that the user can mend: one line on standard error and an exit code, never a traceback.

The text reads `WHERE: WHAT; WHAT TO DO`. Exit codes: 2 usage or a path that is missing, 3 a file that is there but bad,
74 input or output failed.
"""

USAGE = 2
BAD_FILE = 3
IO = 74


class UserError(Exception):
    def __init__(self, code, where, what, remedy):
        super().__init__(f"{where}: {what}; {remedy}")
        self.code = code
