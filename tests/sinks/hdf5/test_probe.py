"""A file over which HDF5 might crash is opened in another process first."""

import shutil
import struct
from pathlib import Path

import pytest

import fastrec
from fastrec._errors import DamagedFileError
from fastrec.sinks.hdf5 import probe
from tests.sinks.hdf5.twenty import read_all


@pytest.fixture
def without_index(finished: Path, tmp_path: Path) -> Path:
    """A finished file, whole but for what says where everything lies."""
    path = tmp_path / "run.h5"
    shutil.copyfile(finished, path)
    with path.open("r+b") as file:
        file.seek(-16, 2)
        length, _ = struct.unpack("<Q8s", file.read())
        file.seek(-16 - length, 2)
        file.truncate()
    return path


def test_a_file_without_its_index_is_read_all_the_same(without_index: Path) -> None:
    read_all(without_index)


def test_a_file_over_which_hdf5_crashes_is_an_error_and_not_a_crash(
    without_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_WALK", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(DamagedFileError, match="HDF5 crashed over it .signal 11."):
        fastrec.load(without_index)


def test_a_file_that_hdf5_never_gets_through_is_an_error(without_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(probe, "_WALK", "import time; time.sleep(9)")
    with pytest.raises(DamagedFileError, match="did not get through it"):
        fastrec.load(without_index)
