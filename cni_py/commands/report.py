"""How the commands end when they cannot do what they were asked."""

FAILED = 1  # the operation failed
USAGE = 2
LACKING = 3  # the environment lacks something: root, a program, a namespace


class Failure(Exception):
    """A sentence for the user, and the exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status
