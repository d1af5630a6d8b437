"""The names of the files that one recording has while it grows and when it is finished."""

from __future__ import annotations

import glob
import os
import re

from fastrec._errors import OptionError, RecordingExistsError, RecordingFileError

SUFFIXES = (".h5", ".hdf5")


class Paths:
    """From the path that the user gave to those of the segments."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        stem, self._suffix = os.path.splitext(self.path)
        if self._suffix not in SUFFIXES or not os.path.basename(stem):
            raise OptionError(f"the path {self.path!r} has to end in .h5 or .hdf5, such as 'run.h5'")
        self._stem = stem

    def sealed(self, number: int) -> str:
        return f"{self._stem}.{number:05d}{self._suffix}"

    def growing(self, number: int) -> str:
        return self.sealed(number) + ".tmp"

    def map(self, number: int) -> str:
        return self.growing(number) + ".map"

    def part(self, number: int) -> str:
        return self.sealed(number) + ".part"

    def segments(self) -> dict[int, list[str]]:
        """The files of segments that exist, by number."""
        found: dict[int, list[str]] = {}
        stem, suffix = re.escape(self._stem), re.escape(self._suffix)
        named = re.compile(rf"{stem}\.(\d{{5}}){suffix}(\.tmp|\.tmp\.map|\.tmp\.map\.part|\.part)?", re.DOTALL)
        for path in sorted(glob.glob(glob.escape(self._stem) + ".*")):
            match = named.fullmatch(path)
            if match:
                found.setdefault(int(match[1]), []).append(path)
        return found

    def forget(self, number: int) -> None:
        """Remove what a segment only needed while it grew; the map last, which makes the rest readable."""
        for path in (self.growing(number), self.part(number), self.map(number) + ".part", self.map(number)):
            if os.path.exists(path):
                os.unlink(path)

    def claim(self, *, overwrite: bool) -> None:
        """Make sure that nothing is written over, and that something can be written here."""
        there = [self.path] if os.path.lexists(self.path) else []
        there += [path for paths in self.segments().values() for path in paths]
        if there and not overwrite:
            raise RecordingExistsError(
                f"{there[0]!r} exists; give another path, or HDF5Sink({self.path!r}, overwrite=True)"
            )
        for path in there:
            if os.path.isdir(path):
                raise RecordingExistsError(f"{path!r} is a folder; give the path of a file")
            os.unlink(path)
        try:
            os.close(os.open(self.growing(0), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            raise RecordingExistsError(f"another recorder has just begun to write {self.path!r}") from None
        except OSError as error:
            raise RecordingFileError(f"{self.path!r} can't be written: {error.strerror}") from error
