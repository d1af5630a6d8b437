"""Folders and files that may not be written or read, and readers that hold the files which are being written."""

import os
import shutil
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec._errors import RecordingFileError
from fastrec.files import merge, repack, verify
from fastrec.sinks import HDF5Sink

MODEL = torch.nn.Identity()
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")


def record(path: Path, passes: int = 5, **options: object) -> None:
    with Recorder(MODEL, keep_module=True, sink=HDF5Sink(path, **options)):
        for i in range(passes):
            MODEL(torch.full((3,), float(i)))


def numbers(path: Path) -> list[float]:
    return fastrec.load(path).stack("module:")[:, 0].tolist()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that everybody may look into, with a finished recording and one whose process was killed."""
    made = Path(tempfile.mkdtemp())
    try:
        record(made / "run.h5")
        with Recorder(MODEL, keep_module=True, sink=made / "grows.h5") as rec:
            MODEL(torch.zeros(3))
            rec.flush()
            for name in ("grows.00000.h5.tmp", "grows.00000.h5.tmp.map"):
                shutil.copy(made / name, made / name.replace("grows", "killed"))
        merge([made / "run.h5", made / "grows.h5"], made / "merged.h5", virtual=True)
        made.chmod(0o555)
        yield made
    finally:
        made.chmod(0o700)
        shutil.rmtree(made)


def as_nobody(check: Callable[[], None]) -> None:
    """Run a check in a process of a user who may write nothing here."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            check()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@as_root
def test_a_folder_that_may_not_be_written_is_an_error_at_once(folder: Path) -> None:
    before = sorted(os.listdir(folder))

    def check() -> None:
        for path, options in (("new.h5", {}), ("run.h5", {"append": True}), ("run.h5", {"overwrite": True})):
            with pytest.raises(RecordingFileError, match="can't be .*: Permission denied"):
                record(folder / path, **options)
        assert numbers(folder / "run.h5") == [0, 1, 2, 3, 4]

    as_nobody(check)
    assert sorted(os.listdir(folder)) == before
    assert numbers(folder / "run.h5") == [0, 1, 2, 3, 4]


@as_root
def test_a_folder_that_may_not_be_written_is_read_all_the_same(folder: Path) -> None:
    own = Path(tempfile.mkdtemp())
    own.chmod(0o777)

    def check() -> None:
        assert fastrec.load(folder / "killed.h5").n_passes == 1
        assert fastrec.load(folder / "killed.h5", live=True).refresh() == 0
        assert fastrec.load(folder / "merged.h5").n_passes == 6
        assert verify(folder / "run.h5").damage == verify(folder / "merged.h5").damage == []
        with pytest.raises(RecordingFileError, match="can't be .*: Permission denied"):
            fastrec.recover(folder / "killed.h5")
        with pytest.raises(RecordingFileError, match="can't be .*: Permission denied"):
            repack(folder / "run.h5", to=folder / "packed.h5")
        assert fastrec.recover(folder / "killed.h5", to=own / "killed.h5").passes == 1
        repack(folder / "run.h5", to=own / "packed.h5")
        assert numbers(own / "packed.h5") == [0, 1, 2, 3, 4]

    try:
        as_nobody(check)
    finally:
        shutil.rmtree(own)


@as_root
def test_files_that_may_not_be_read_are_an_error(folder: Path) -> None:
    files = {path: path.stat().st_mode for path in folder.iterdir()}
    for path in files:
        path.chmod(0)

    def check() -> None:
        for name in ("run", "killed", "merged"):
            for use in (fastrec.load, verify):
                with pytest.raises(RecordingFileError, match="can't be read: Permission denied"):
                    use(folder / f"{name}.h5")
        with pytest.raises(RecordingFileError, match="can't be .*: Permission denied"):
            record(folder / "run.h5", append=True)

    try:
        as_nobody(check)
    finally:
        for path, mode in files.items():
            path.chmod(mode)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_readers_that_hold_the_files_do_not_disturb_the_writer(tmp_path: Path, compression: str | None) -> None:
    path, held = tmp_path / "run.h5", []
    sink = HDF5Sink(path, segment_bytes=1 << 20, compression=compression)
    with Recorder(MODEL, keep_module=True, sink=sink) as rec:
        for i in range(24):
            MODEL(torch.full((50_000,), float(i)))
            if i % 6 == 0:
                rec.flush()
                held.append((i, fastrec.load(path), h5py.File(max(tmp_path.glob("*.tmp")), "r")))
    record(path, append=True)
    assert len(list(tmp_path.glob("run.0*.h5"))) > 3
    assert fastrec.load(path).n_passes == 29
    for last, recording, file in held:
        assert recording.stack("module:")[:, 0].tolist() == list(range(last + 1))
        assert file.attrs["format"] == "fastrec" and file["passes"]["ok"][0] == 1
        file.close()
    record(path, overwrite=True)
    assert held[0][1].stack("module:")[0, 0] == 0  # what was removed stays readable for those who had it open
    assert stat.S_ISREG(path.stat().st_mode) and numbers(path) == [0, 1, 2, 3, 4]
