"""Speaks words with espeak-ng; a program, always a process of its own.

The library is under the GPL: no other module loads it, and none of it is shipped. It comes with
the package espeakng-loader and is called by ctypes (functions of espeak-ng 1.52's speak_lib.h and
espeak_ng.h).

Standard input: a JSON list of [text, voice, speed in words per minute, pitch 0-99]. Standard
output: the sample rate, then for each entry the number of samples and the samples, all in
little-endian: int32, int32, int16 [samples]. The same input gives the same bytes; a clip alone
would not be the same as within a list, for the synthesizer's flutter runs on from clip to clip.
"""

import ctypes
import json
import os
import struct
import sys
from pathlib import Path

_SYNCHRONOUS = 2
_UTF8 = 1
_RATE, _VOLUME, _PITCH = 1, 2, 3
_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Speaker:
    """The one synthesizer of this process.

    Attributes:
        sample_rate: Hz of the clips.
    """

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        # the library holds 160 characters of this path, so it gets a short one
        os.chdir(Path(espeakng_loader.get_data_path()).parent)
        self.sample_rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, b".", 0)
        if self.sample_rate <= 0:
            raise RuntimeError("espeak-ng did not find its data")
        self._library.espeak_SetParameter(_VOLUME, 50, 0)  # above, the loudest voices clip
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self._voice = ""
        self._parts: list[bytes] = []
        self._callback = _Callback(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: object, count: int, _events: object) -> int:
        if samples and count:
            self._parts.append(ctypes.string_at(samples, 2 * count))  # type: ignore[arg-type]
        return 0

    def say(self, text: str, voice: str, speed: int, pitch: int) -> bytes:
        """One clip, int16."""
        if voice != self._voice:
            if self._library.espeak_SetVoiceByName(voice.encode()):
                raise RuntimeError(f"espeak-ng has no voice {voice!r}")
            self._voice = voice
        self._library.espeak_SetParameter(_RATE, speed, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        self._parts.clear()
        content = text.encode() + b"\0"
        if self._library.espeak_Synth(content, len(content), 0, 1, 0, _UTF8, None, None):
            raise RuntimeError(f"espeak-ng could not say {text!r}")
        return b"".join(self._parts)


def main() -> None:
    """Read the list, write the clips; on failure one line to standard error and status 1."""
    try:
        wanted = json.load(sys.stdin)
        speaker = Speaker()
        sys.stdout.buffer.write(struct.pack("<i", speaker.sample_rate))
        for text, voice, speed, pitch in wanted:
            clip = speaker.say(text, voice, speed, pitch)
            sys.stdout.buffer.write(struct.pack("<i", len(clip) // 2) + clip)
        sys.stdout.buffer.flush()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        # the interpreter would try again to flush to a reader that is gone
        os._exit(1)


if __name__ == "__main__":
    main()
