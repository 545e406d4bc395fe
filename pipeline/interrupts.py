"""SIGTERM and Ctrl-C that arrive between two steps, never inside one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """The process was asked to end; `number` is the signal. Exit status: 128 + number."""

    def __init__(self, number: int, message: str = "") -> None:
        self.number = number
        super().__init__(message or f"ended by {signal.Signals(number).name}")


_deferring = False
_pending: int | None = None


@contextmanager
def handled() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into `Interrupted`; outside the main thread, change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _pending
    _pending = None
    before = {number: signal.signal(number, _receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Hold a signal back until `pending` is asked; a second one is not held back."""
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False


def pending() -> int | None:
    """The signal that was held back, or that some import swallowed, if any."""
    return _pending


def _receive(number: int, _frame: FrameType | None) -> None:
    global _pending
    first, _pending = _pending is None, number
    if not (_deferring and first):
        raise Interrupted(number)
