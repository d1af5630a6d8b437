"""Recordings of twenty passes that the tests only read."""

import shutil
from pathlib import Path

import pytest

from fastrec.sinks import HDF5Sink
from tests.sinks.hdf5.twenty import record_twenty


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run.h5"
    record_twenty(HDF5Sink(path)).__exit__(None, None, None)
    return path


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("growing") / "run.h5"
    rec = record_twenty(HDF5Sink(path, segment_bytes=1 << 20))
    rec.flush()
    copy = tmp_path_factory.mktemp("killed")
    for name in path.parent.iterdir():
        shutil.copyfile(name, copy / name.name)
    rec.__exit__(None, None, None)
    return copy / "run.h5"
