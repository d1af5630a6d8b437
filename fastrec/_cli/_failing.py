"""What the command says and returns when it can't do what it was asked."""

from __future__ import annotations

import os
from difflib import get_close_matches

from fastrec._errors import DamagedFileError, FastrecError, RecordingNotFoundError

DONE, FAILED, USAGE, NO_FILE, DAMAGED, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 4, 130, 141

CODES = f"""\
exit codes:
  {DONE}    done
  {FAILED}    it could not be done: no such site, an option that does not fit, something missing
  {USAGE}    the command line was not understood
  {NO_FILE}    a file is not there, or can't be read or written
  {DAMAGED}    a file is no recording, or is damaged
  {INTERRUPTED}  interrupted (Ctrl-C)
  {BROKEN_PIPE}  whoever read the output stopped reading"""


def told(error: Exception, paths: list[str]) -> str:
    """An error on one line, with what to do about it; ``paths`` are the recordings that were asked for."""
    if isinstance(error, OSError) and not isinstance(error, FastrecError):
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)!r}: "
        text = f"{name}{error.strerror or error}"
    else:
        text = str(error)
    if isinstance(error, DamagedFileError):
        text += "; look whether it is the right file and was copied whole"
    if isinstance(error, RecordingNotFoundError):
        missing = next((path for path in paths if repr(path) in text), paths[0])
        text += near_files(os.path.dirname(missing) or ".", os.path.basename(missing))
    return " ".join(text.split())


def code_of(error: Exception) -> int:
    """The exit code of an error."""
    if isinstance(error, DamagedFileError):
        return DAMAGED
    return NO_FILE if isinstance(error, OSError) else FAILED


def near_files(folder: str, name: str) -> str:
    """Which files of recordings a folder has, those with a name like this one first."""
    try:
        there = sorted(entry for entry in os.listdir(folder) if entry.endswith((".h5", ".hdf5")))
    except OSError as error:
        return f"; the folder {folder!r} can't be read: {error.strerror}"
    if not there:
        return f"; {folder!r} has no .h5 file"
    close = sorted(get_close_matches(name, there, n=3)) or there[:3]
    return f"; {folder!r} has {', '.join(repr(entry) for entry in close)}"
