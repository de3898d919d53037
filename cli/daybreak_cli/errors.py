"""What a command cannot do, said to the user without a traceback."""


class CommandError(Exception):
    """The message says what is wrong, where, and what to do; the command exits with `exit_code`.

    Exit codes: 1 the work failed, 2 the call or its input was wrong.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
