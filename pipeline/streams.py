"""Standard streams that no print can fail on."""

import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, BinaryIO, cast

from typing_extensions import Buffer, override


class _Lossy(io.FileIO):
    """A standard stream whose bytes may go nowhere: the reader has left, the disk is full."""

    @override
    def write(self, data: Buffer, /) -> int:
        try:
            while (count := super().write(data)) is None:  # the other end made it non-blocking
                select.select((), (self,), ())
            return count
        except OSError:
            return memoryview(data).nbytes


def make_safe() -> None:
    """Let nothing that is printed end this process or change its exit status.

    A stream that was closed is one to nowhere, what its encoding lacks is escaped, and what can't
    be written is dropped. To be called at the start of every program; under a tool that has put
    its own in a stream's place that stream stays.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream: Any = getattr(sys, name)
        if stream is None:  # in this order each gets its own number, which no data file then has
            nowhere = open(os.devnull, "w" if number else "r", encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(nowhere.fileno(), True)
            setattr(sys, name, nowhere)
        elif number and stream is getattr(sys, f"__{name}__"):
            raw = _Lossy(number, "w", closefd=False)
            unbuffered = isinstance(stream.buffer, io.RawIOBase)  # python -u
            safe = io.TextIOWrapper(
                cast(BinaryIO, raw) if unbuffered else io.BufferedWriter(raw),
                stream.encoding,
                "backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            with suppress(OSError):
                stream.flush()
            setattr(sys, name, safe)
