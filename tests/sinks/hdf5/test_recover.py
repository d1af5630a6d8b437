"""What a killed process left is finished, in place or elsewhere, and what somebody writes is left alone."""

import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec._errors import RecordingFileError
from fastrec.sinks import HDF5Sink
from tests.sinks.hdf5 import recordings
from tests.sinks.hdf5.twenty import read_all


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_recovering_elsewhere_leaves_the_files_alone(killed: Path, tmp_path: Path) -> None:
    before = contents_of(killed.parent)
    recovered = fastrec.recover(killed, to=tmp_path / "whole.h5")
    assert (recovered.passes, recovered.steps) == (20, 20)
    assert "what ran after pass 19" in recovered.lost
    assert contents_of(killed.parent) == before
    assert [path.name for path in tmp_path.iterdir()] == ["whole.h5"]
    read_all(tmp_path / "whole.h5")


def test_recovering_in_place_leaves_finished_files_with_the_same_records(tmp_path: Path) -> None:
    expected = recordings.make("killed", tmp_path)
    recovered = fastrec.recover(tmp_path / "run.h5")
    assert recovered.passes == expected["passes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.00000.h5", "run.00001.h5", "run.h5"]
    assert recordings.contents(fastrec.load(tmp_path / "run.h5")) == expected
    with h5py.File(tmp_path / "run.00001.h5") as file:
        assert (file["records"]["row"] < 0).any() and len(file["late"]) < 1 << 16  # without the spare room


def test_a_recording_that_is_being_written_is_not_finished_by_anybody_else(tmp_path: Path) -> None:
    model = torch.nn.Identity()
    with Recorder(model, keep_module=True, sink=tmp_path / "run.h5") as rec:
        model(torch.zeros(2))
        rec.flush()
        with pytest.raises(RecordingFileError, match=r"00000.h5.tmp' is being written by .*recover\(..., to=...\)"):
            fastrec.recover(tmp_path / "run.h5")
        assert fastrec.recover(tmp_path / "run.h5", to=tmp_path / "copy.h5").passes == 1
        model(torch.zeros(2))
    assert fastrec.load(tmp_path / "run.h5").n_passes == 2
    assert fastrec.load(tmp_path / "copy.h5").n_passes == 1


def test_what_was_written_without_locks_is_only_finished_by_force(tmp_path: Path) -> None:
    model, path = torch.nn.Identity(), tmp_path / "run.h5"
    with Recorder(model, keep_module=True, sink=HDF5Sink(path, locking=False)) as rec:
        model(torch.zeros(2))
        rec.flush()
        with pytest.raises(RecordingFileError, match=r"can't be known .*recover\(..., force=True\), or .*to=...\)"):
            fastrec.recover(path)
        assert fastrec.recover(path, to=tmp_path / "copy.h5").passes == 1
        model(torch.zeros(2))
    assert fastrec.load(path).n_passes == 2


def test_what_a_killed_process_wrote_without_locks_is_finished_by_force(tmp_path: Path) -> None:
    code = (
        "import os, torch, fastrec; from fastrec.sinks import HDF5Sink; m = torch.nn.Identity()\n"
        "with fastrec.Recorder(m, keep_module=True, sink=HDF5Sink('run.h5', locking=False)) as rec:\n"
        "    m(torch.ones(2)); rec.flush(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    with pytest.raises(RecordingFileError, match="force=True"):
        fastrec.recover(tmp_path / "run.h5")
    assert fastrec.recover(tmp_path / "run.h5", force=True).passes == 1
