"""The one kind of error a user is meant to see."""


class PipelineError(Exception):
    """A fault the user can mend.

    The message is one line: what was wrong, where it came from (file and key, or row), and what
    to do. The stage decorator prints it without a traceback and exits with status 1; any other
    exception is a bug of this project and keeps its traceback.
    """
