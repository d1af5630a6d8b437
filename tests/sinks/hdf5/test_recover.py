"""What a killed process left is finished, in place or elsewhere, and what somebody writes is left alone."""

import errno
from pathlib import Path

import h5py
import msgspec
import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec._errors import DamagedFileError, FastrecWarning, RecordingExistsError, RecordingFileError
from fastrec.files import verify
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5.layout import TABLES
from fastrec.sinks.hdf5.paths import Paths
from fastrec.sinks.hdf5.recover import RecoverOptions, _claimed
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


def hurt(path: Path, name: str, row: int, field: str = "ok", by: int = 1) -> None:
    """Flip bits of one field of one row of a table of a growing file."""
    dtype = TABLES[name]
    index = msgspec.json.decode(path.with_name(path.name + ".map").read_bytes()[9:])
    extent = index["sets"][name]
    chunk, in_chunk = divmod(row, extent["chunk_rows"])
    at = extent["offsets"][chunk] + in_chunk * dtype.itemsize + dtype.fields[field][1]
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ by]))


@pytest.fixture
def hurt_growing(killed: Path, tmp_path: Path) -> Path:
    """Twenty passes of a killed process, of which the row of pass 7 is damaged."""
    for path in killed.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    hurt(tmp_path / "run.00000.h5.tmp", "passes", 7)
    return tmp_path / "run.h5"


def test_one_damaged_row_costs_one_pass(hurt_growing: Path) -> None:
    whole = [i for i in range(20) if i != 7]
    with pytest.warns(FastrecWarning, match=r"is damaged in 'passes': 1 of 20 rows can't be read, of them 7"):
        recording = fastrec.load(hurt_growing)
    assert recording._source.passes()["pass_index"].tolist() == whole
    with pytest.warns(FastrecWarning):
        assert fastrec.load(hurt_growing, salvage=True).n_passes == 19
    damage = verify(hurt_growing).damage
    assert {block.data_set for block in damage} == {"passes"}
    recovered = fastrec.recover(hurt_growing)
    assert recovered.passes == 19 and "1 of 20 rows can't be read, of them 7" in recovered.lost
    names = sorted(path.name for path in hurt_growing.parent.iterdir())
    assert names == ["run.00000.h5.tmp.damaged", "run.00000.h5.tmp.map.damaged", "run.h5"]
    with pytest.warns(FastrecWarning, match="1 of 20 rows"):
        assert fastrec.load(hurt_growing)._source.passes()["pass_index"].tolist() == whole


def test_the_last_rows_are_missed_too(killed: Path, tmp_path: Path) -> None:
    """The rows that a checksum speaks of were there, even if none is left after the damaged one."""
    for path in killed.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for row in range(15, 20):
        hurt(tmp_path / "run.00000.h5.tmp", "passes", row)
    with pytest.warns(FastrecWarning, match="5 of 20 rows can't be read, of them 15, 16, 17, 18, 19"):
        assert fastrec.load(tmp_path / "run.h5").n_passes == 15


@pytest.mark.parametrize("to", [None, "copy.h5"])
def test_a_file_that_lost_its_map_is_recovered(killed: Path, tmp_path: Path, to: str | None) -> None:
    content = killed.with_name("run.00000.h5.tmp").read_bytes()
    (tmp_path / "run.00000.h5.tmp").write_bytes(content)
    assert fastrec.load(tmp_path / "run.h5").n_passes == 20
    recovered = fastrec.recover(tmp_path / "run.h5", to and tmp_path / to)
    assert recovered.passes == 20 and fastrec.load(recovered.path).n_passes == 20


def test_a_damaged_file_is_removed_only_if_that_was_said(hurt_growing: Path) -> None:
    assert fastrec.recover(hurt_growing, discard=True).passes == 19
    assert [path.name for path in hurt_growing.parent.iterdir()] == ["run.h5"]


def test_a_damaged_record_costs_one_record(killed: Path, tmp_path: Path) -> None:
    for path in killed.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    n_records = len(fastrec.load(tmp_path / "run.h5"))
    hurt(tmp_path / "run.00000.h5.tmp", "records", 5, "variant", 0x70)
    with pytest.warns(FastrecWarning, match="'records': 1 of .* rows make no sense"):
        assert len(fastrec.load(tmp_path / "run.h5", salvage=True)) == n_records - 1
    assert fastrec.recover(tmp_path / "run.h5", to=tmp_path / "rest.h5").records == n_records - 1


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_damaged_segment_costs_what_is_in_it(tmp_path: Path, how: str) -> None:
    model, path = torch.nn.Identity(), tmp_path / "run.h5"
    with Recorder(model, keep_module=True, sink=HDF5Sink(path, segment_bytes=1 << 20)) as rec:
        for i in range(30):
            model(torch.full((50_000,), float(i)))
            rec.flush()
    segment = tmp_path / "run.00001.h5"
    lost = {int(value[0]) for value in h5py.File(segment)["data/:out"]}
    if how == "damaged":
        segment.write_bytes(bytes(1000))
    else:
        segment.unlink()
    with pytest.raises(DamagedFileError):
        fastrec.load(path)
    with pytest.warns(FastrecWarning, match="run.00001.h5' is damaged: (nothing in it can be read|it is missing)"):
        values = fastrec.load(path, salvage=True).stack("module:")[:, 0].tolist()
    assert values == [i for i in range(30) if i not in lost] and lost
    before = contents_of(tmp_path)
    assert "run.00001.h5' is damaged" in fastrec.recover(path).lost and contents_of(tmp_path) == before
    assert fastrec.recover(path, to=tmp_path / "rest.h5").passes == 30 - len(lost)


def test_values_are_compared_with_their_checksums(tmp_path: Path) -> None:
    model, path = torch.nn.Identity(), tmp_path / "run.h5"
    with Recorder(model, keep_module=True, sink=path):
        for i in range(5):
            model(torch.full((3,), 1.25 + i))
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((3,), 3.25).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    assert len(fastrec.load(path).stack("module:")) == 5
    with pytest.raises(DamagedFileError, match="of ':out' in .*other bytes than were written; .*salvage=True"):
        fastrec.load(path, verify=True).stack("module:")
    with pytest.warns(FastrecWarning, match="rows 0 to 4 of ':out' are other bytes than were written"):
        assert len(fastrec.load(path, salvage=True)) == 5
    assert "other bytes than were written" in fastrec.recover(path, to=tmp_path / "copy.h5").lost


def test_a_segment_that_has_no_name_yet_is_cleared_away(killed: Path, tmp_path: Path) -> None:
    for path in killed.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "run.00001.h5.tmp.819d2608.part").write_bytes(b"")
    assert fastrec.recover(tmp_path / "run.h5").passes == 20
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_nobody_knows_who_writes_where_there_are_no_locks(
    killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in killed.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fastrec.sinks.hdf5.system.fcntl.flock", refuse)
    with pytest.raises(
        RecordingFileError, match=r"has no locks, so it can't be known .* give recover\(..., force=True"
    ):
        fastrec.recover(tmp_path / "run.h5")
    assert fastrec.recover(tmp_path / "run.h5", to=tmp_path / "copy.h5").passes == 20
    assert fastrec.recover(tmp_path / "run.h5", force=True).passes == 20


def test_nobody_knows_who_writes_without_a_lock(tmp_path: Path) -> None:
    model, path = torch.nn.Identity(), tmp_path / "run.h5"
    with Recorder(model, keep_module=True, sink=HDF5Sink(path, locking=False)) as rec:
        model(torch.zeros(2))
        rec.flush()
        with pytest.raises(RecordingFileError, match="was recorded without a lock, so it can't be known"):
            fastrec.recover(path)
        model(torch.zeros(2))
    assert fastrec.load(path).n_passes == 2


def test_a_recorder_does_not_begin_while_its_recording_is_recovered(hurt_growing: Path) -> None:
    with _claimed(Paths(hurt_growing), RecoverOptions()):
        with pytest.raises(RecordingExistsError, match="is being written by another process"):
            Recorder(torch.nn.Identity(), keep_module=True, sink=HDF5Sink(hurt_growing, append=True)).__enter__()


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
