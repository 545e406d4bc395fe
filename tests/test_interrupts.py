"""A signal ends the process, at once or at the next step, whatever runs when it comes."""

import os
import signal

import pytest

from pipeline import interrupts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_an_import_swallows_is_still_pending(number):
    with interrupts.handled():
        with pytest.raises(interrupts.Interrupted):  # some extension modules swallow it so
            os.kill(os.getpid(), number)
        with interrupts.deferred():
            assert interrupts.pending() == number
    with interrupts.handled():
        assert interrupts.pending() is None


def test_a_second_signal_is_not_held_back():
    with interrupts.handled(), interrupts.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.pending() == signal.SIGTERM
        with pytest.raises(interrupts.Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
