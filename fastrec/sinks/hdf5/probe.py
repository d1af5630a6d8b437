"""Opens a damaged file in a separate process first, because HDF5 may crash over it or never end.

    probe_in_subprocess("run.00000.h5")  # returns, or raises DamagedFileError

HDF5 believes what a file says of itself. A file that nothing vouches for (its trailer is gone, its map is damaged) may
send it into a segmentation fault or an endless loop, which no ``except`` in this process could catch.
"""

from __future__ import annotations

import os
import subprocess
import sys

from fastrec._errors import DamagedFileError

MAX_SECONDS = 60

# Looks at all data sets as the readers do, and at where their chunks lie. It is handed over as text, so that the child
# imports h5py and nothing else.
_WALK = """
import sys, h5py

def look(name, item):
    if isinstance(item, h5py.Dataset):
        dict(item.attrs)
        space = item.id
        space.get_type(), item.dtype, item.shape, space.get_offset(), space.get_create_plist().get_nfilters()
        if item.chunks is not None:
            space.chunk_iter(lambda info: None)

with h5py.File(sys.argv[1], "r", locking=False) as file:
    dict(file.attrs)
    file.visititems(look)
"""


def probe_in_subprocess(path: str) -> None:
    """Raise DamagedFileError where HDF5 would crash or never end over the structure of a file."""
    if not sys.executable or not os.path.isfile(path):
        return
    module_paths = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        child = subprocess.run(
            [sys.executable, "-c", _WALK, os.path.abspath(path)],
            env={**os.environ, "PYTHONPATH": module_paths},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MAX_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise DamagedFileError(f"{path!r} is damaged: HDF5 did not get through it in {MAX_SECONDS} s") from None
    except OSError:  # no process may be started here
        return
    # An exception of the child is not looked at: opening the file here raises it too, with a better message.
    if child.returncode < 0:
        raise DamagedFileError(f"{path!r} is damaged: HDF5 crashed over it (signal {-child.returncode})")
