"""Decode one recording, from a file or bytes: header, waveform.

Letters: F frames of the recording, L numbers of the waveform.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.config.audio_keys import MOST_NUMBERS, PLAIN_RATE, AudioKeys
from finetune.data.hashes.contents import State, is_unchanged, naming, opened_regular
from finetune.data.hashes.item_contents import Known, another_one
from finetune.data.media.decoding import hash_bytes
from finetune.errors import DataError
from finetune.importing import require

_LEAST_RATE, _MOST_RATE = 100, 384_000
"""Frames a second. The filter that resamples grows with the rate: that of a damaged header took all
memory."""
_SHORTER_THAN_SAID = re.compile(r"data : (\d+) \(should be (\d+)\)")
_UNKNOWN_SIZE = 0x7FFF0000
"""A WAV that was written into a pipe gives a size above this one."""


class SoundRules(NamedTuple):
    """How recordings are read.

    Args:
        rate: Numbers a second of every waveform.
        seconds: Length of every waveform; None for that of the recording.
    """

    rate: int = PLAIN_RATE
    seconds: float | None = None

    @classmethod
    def of(cls, source: object) -> "SoundRules":
        """Return the rules that the keys of a source give; the default ones for other sources."""
        if not isinstance(source, AudioKeys):
            return cls()
        return cls(source.sample_rate, source.seconds)

    @property
    def length(self) -> int | None:
        """Numbers of every waveform; None for as many as the recording gives."""
        return None if self.seconds is None else max(1, round(self.seconds * self.rate))


class SoundHeader(NamedTuple):
    """What the header of a recording says."""

    rate: int
    """Frames a second."""
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return self.frames / self.rate

    def length(self, rate: int) -> int:
        """Return the numbers of its waveform at a rate."""
        # As `resample_poly` rounds: up, of the reduced fraction.
        common = math.gcd(rate, self.rate)
        return -(-self.frames * (rate // common) // (self.rate // common))


def read_sound_header(item: Any) -> SoundHeader:
    """Return the header of one recording; nothing is decoded.

    Raises:
        DataError: the file is missing, no recording, or ends before its header says.
    """
    with _opened(item) as (file, name), _decoded(file, name) as sound:
        return _header(sound, name)


def read_waveform(item: Any, rules: SoundRules, known: Known | None = None) -> Tensor:
    """Return one recording as a waveform `(L,)` in float32: the mean of its channels.

    Args:
        item: A path, encoded bytes, or `{"bytes", "path"}` with bytes.
        rules: Rate and length.
        known: Returns state and hash that the item must have; None to accept any contents.

    Raises:
        DataError: the file is missing, damaged, or has changed. The message names it.
    """
    with _opened(item) as (file, name):
        with naming(name, "recording"):
            expected = None if known is None else known(file)
        with _decoded(file, name) as sound:
            header = _header(sound, name)
            _refuse_endless(header, rules, name)
            wanted = header.frames
            if rules.seconds is not None:
                # The rest is cut off anyway, and an hour of it would be decoded for nothing.
                wanted = min(wanted, math.ceil(rules.seconds * header.rate) + 1)
            frames = _frames(sound, wanted, header, name)
        # Checked after decoding: what is written to the file from now on is not in the result.
        if expected is not None and not _holds(file, *expected):
            raise another_one(name, "recording")
    return torch.from_numpy(_of_length(_resampled(frames, header.rate, rules.rate), rules.length))


def sound_name(item: Any) -> str:
    """Return the name of a recording for messages."""
    if isinstance(item, Path):
        return str(item)
    return str((item.get("path") if isinstance(item, dict) else None) or "(in memory)")


def encoded_digest(item: Any) -> bytes:
    """Return a hash of the contents of a recording in memory."""
    with _opened(item) as (file, _):
        return hash_bytes(file.read())


def _frames(sound: Any, wanted: int, header: SoundHeader, name: str) -> np.ndarray[Any, Any]:
    """Return the first frames `(F,)` as the mean over channels."""
    frames = sound.read(wanted, dtype="float32", always_2d=True)
    if len(frames) < wanted:
        raise _unreadable(
            name, f"it ends after {len(frames) / header.rate:.2f} of {header.seconds:.2f} seconds"
        )
    if not np.isfinite(frames).all():
        raise _unreadable(name, "it holds values that are not finite")
    mean: np.ndarray[Any, Any] = frames.mean(axis=1) if header.channels > 1 else frames[:, 0]
    return mean


def _resampled(frames: np.ndarray[Any, Any], rate: int, wanted: int) -> np.ndarray[Any, Any]:
    """Return a waveform at another rate, by scipy's polyphase filter."""
    if rate == wanted:
        return frames
    signal = require("scipy.signal", extra="audio")
    common = math.gcd(rate, wanted)
    resampled = signal.resample_poly(frames, wanted // common, rate // common)
    return np.asarray(resampled, dtype=np.float32)


def _of_length(waveform: np.ndarray[Any, Any], length: int | None) -> np.ndarray[Any, Any]:
    """Return a waveform cut to a length, or with silence behind it."""
    if length is None:
        return np.ascontiguousarray(waveform)
    # Behind, not around: where a recording begins stays where it was.
    result = np.zeros(length, np.float32)
    kept = waveform[:length]
    result[: len(kept)] = kept
    return result


def _header(sound: Any, name: str) -> SoundHeader:
    """Return the header of an open recording; raise if it cannot be read as a whole."""
    header = SoundHeader(int(sound.samplerate), int(sound.channels), int(sound.frames))
    if header.frames < 1 or header.rate < 1:
        raise _unreadable(name, "it is empty")
    if not _LEAST_RATE <= header.rate <= _MOST_RATE:
        raise _unreadable(name, f"it has {header.rate:,} frames a second")
    # By the header, before memory is taken for as much as it promises.
    if header.frames * header.channels > MOST_NUMBERS:
        raise _unreadable(name, f"it has {header.seconds:,.0f} seconds; cut it into pieces")
    # Of a WAV that was cut off, libsndfile reads what is there, and says so only in its log.
    told = _SHORTER_THAN_SAID.search(sound.extra_info)
    if told and int(told[2]) < int(told[1]) < _UNKNOWN_SIZE:
        raise _unreadable(name, f"it ends after {told[2]} of {told[1]} bytes")
    return header


def _refuse_endless(header: SoundHeader, rules: SoundRules, name: str) -> None:
    """Raise if a waveform would exceed all memory: a recording of a low rate grows manyfold."""
    if (rules.length or header.length(rules.rate)) > MOST_NUMBERS:
        raise _unreadable(
            name,
            f"it has {header.seconds:,.0f} seconds, too many for a sample_rate of {rules.rate:,}; "
            "cut it into pieces",
        )


@contextmanager
def _decoded(file: BinaryIO, name: str) -> Iterator[Any]:
    """Yield an open file as a recording; turn exceptions of soundfile into a `DataError`."""
    soundfile = require("soundfile", extra="audio")
    # A damaged header may promise any size or type, and soundfile passes on whatever that causes.
    try:
        with soundfile.SoundFile(file) as sound:
            yield sound
    except (soundfile.SoundFileError, TypeError, ValueError, OverflowError, MemoryError) as error:
        reason = getattr(error, "error_string", None) or str(error) or type(error).__name__
        raise _unreadable(name, reason.partition("\n")[0].rstrip(". ")) from error


def _unreadable(name: str, reason: str) -> DataError:
    """Return the error for a recording that cannot be read."""
    return DataError(f"cannot read the recording {name!r}: {reason}")


@contextmanager
def _opened(item: Any) -> Iterator[tuple[BinaryIO, str]]:
    """Yield an encoded recording as an open file, and its name for messages."""
    if isinstance(item, Path):
        with opened_regular(item, "recording") as file:
            yield file, str(item)
    elif isinstance(item, bytes):
        yield BytesIO(item), "(in memory)"
    elif isinstance(item, dict) and isinstance(item.get("bytes"), bytes):
        yield BytesIO(item["bytes"]), sound_name(item)
    else:
        raise DataError(f"needs a recording or the path of one, got {type(item).__name__}")


def _holds(file: BinaryIO, state: State, digest: bytes) -> bool:
    """Tell whether an encoded recording still has the contents that were hashed."""
    if isinstance(file, BytesIO):
        return hash_bytes(file.getvalue()) == digest
    return is_unchanged(file, state, digest)
