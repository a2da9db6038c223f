"""What goes wrong for the person at the terminal."""


class OperatorError(Exception):
    """For the operator, in one sentence: what failed, where its log is, what to try. The command line prints it."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
