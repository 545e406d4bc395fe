"""The one kind of error a user is meant to see."""


class PipelineError(Exception):
    """A fault the user can mend.

    The message is one line: what was wrong, where it came from (file and key, or row), and what
    to do. Every program prints it without a traceback and exits with status 1; any other exception
    is a bug of this project and keeps its traceback.

    Messages quote file names and other libraries' words; what a terminal can't show of them is
    written as Python would write it in a string.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))
