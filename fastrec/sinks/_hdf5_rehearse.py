"""Trying out elsewhere what a damaged file might do to the library that reads it."""

from __future__ import annotations

import os
import subprocess
import sys

from fastrec._errors import DamagedFileError

SECONDS = 60


def rehearse(path: str) -> None:
    """Raise DamagedFileError where HDF5 would crash or never end over the structure of a file.

    HDF5 trusts what a file says of itself, so a file that nothing vouches for is first read by a process that may die.
    """
    if not sys.executable or not os.path.isfile(path):
        return
    script = os.path.join(os.path.dirname(__file__), "_hdf5_walk.py")
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        done = subprocess.run(
            [sys.executable, script, os.path.abspath(path)],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise DamagedFileError(f"{path!r} is damaged: HDF5 did not get through it in {SECONDS} s") from None
    except OSError:  # no process may be started here
        return
    # What it raised is raised here too, with a better message.
    if done.returncode < 0:
        raise DamagedFileError(f"{path!r} is damaged: HDF5 crashed over it (signal {-done.returncode})")
