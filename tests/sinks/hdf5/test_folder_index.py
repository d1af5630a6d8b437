"""The index of a folder: right whenever it is used, made again where it is old, and never needed."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec.files import describe, merge
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5 import folder_index
from fastrec.sinks.hdf5.folder_index import INDEX

MODEL = torch.nn.Identity()


def write(run: Path, rank: int, passes: int = 3, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", str(rank))
        with (
            Recorder(MODEL, keep_module=True, sink=HDF5Sink(f"{run}/", **options), autoreset="same_step") as rec,
            rec.phase("train"),
        ):
            for i in range(passes):
                MODEL(torch.zeros(2, 4))
                rec.step(reward=[1.0, 2.0], terminated=[i == 1, False], truncated=[False, False])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for rank in range(3):
        write(tmp_path / "run", rank, 3 + rank)
    return tmp_path / "run"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of recordings that are opened."""
    names: list[str] = []
    open_source = folder_index.open_source

    def note(path: str, **options: Any) -> Any:
        names.append(os.path.basename(path))
        return open_source(path, **options)

    monkeypatch.setattr(folder_index, "open_source", note)
    return names


def test_who_finishes_adds_itself_and_nothing_is_opened(run: Path, opened: list[str]) -> None:
    description = describe(run)
    assert opened == []
    assert (description.passes, description.records, description.steps, description.sites) == (12, 12, 12, 1)
    assert (description.ranks, description.finished, description.nbytes) == ([0, 1, 2], True, 12 * 32)
    assert description.phases == {"train": 12} and description.step_columns == ["reward", "terminated", "truncated"]


def test_it_is_read_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(folder_index, "_read_index", lambda folder: read.append(folder) or {})
    assert describe(run).passes == 12 and read == [str(run)]


def test_it_says_what_the_recording_says(run: Path) -> None:
    description, recording = describe(run), fastrec.load(run)
    assert (description.passes, description.records) == (recording.n_passes, len(recording))
    assert (description.steps, description.episodes) == (len(recording.steps), len(recording.episodes()))
    assert description.processes == recording.processes
    assert {file.path for file in description.files} == {str(path) for path in run.glob("*.h5")}
    merged = merge(sorted(run.glob("*.h5")), run.parent / "whole.h5")
    whole = describe(merged.path)
    for name in (
        "passes",
        "records",
        "steps",
        "episodes",
        "sites",
        "nbytes",
        "phases",
        "entries",
        "ranks",
        "processes",
    ):
        assert getattr(whole, name) == getattr(description, name), name


def test_what_is_new_or_changed_or_gone_is_seen(run: Path, opened: list[str]) -> None:
    before = (run / INDEX).read_bytes()
    write(run, 3)
    (run / INDEX).write_bytes(before)  # as if two had ended at the same moment
    assert describe(run).passes == 15 and len(opened) == 1
    assert describe(run).passes == 15 and len(opened) == 1  # it was written again
    last = max(run.glob("*.h5"), key=lambda path: path.stat().st_mtime_ns)
    os.unlink(last)
    assert describe(run).passes == 12
    assert last.name not in json.loads((run / INDEX).read_text())["recordings"]
    first, second, *_ = sorted(run.glob("*.h5"))
    time.sleep(0.01)
    shutil.copyfile(second, first)
    with_copy = describe(run)
    assert len(opened) == 2 and with_copy.passes == 9
    assert "is a copy of" in with_copy.losses[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 99, "recordings": {}}', b"\xff" * 100])
def test_one_that_makes_no_sense_is_made_again(run: Path, opened: list[str], content: bytes) -> None:
    (run / INDEX).write_bytes(content)
    assert describe(run).passes == 12 and len(opened) == 3
    assert describe(run).passes == 12 and len(opened) == 3


def test_a_link_in_its_place_is_not_followed(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    os.unlink(run / INDEX)
    os.symlink(mine, run / INDEX)
    assert describe(run).passes == 12
    write(run, 3)
    assert mine.read_text() == "precious" and not (run / INDEX).is_symlink()
    os.unlink(run / INDEX)
    os.mkfifo(run / INDEX)
    assert describe(run).passes == 15


def test_growing_files_are_opened_each_time(run: Path, opened: list[str]) -> None:
    with Recorder(MODEL, keep_module=True, sink=f"{run}/", autoreset="same_step") as rec:
        for passes in (13, 14):
            MODEL(torch.zeros(2, 4))
            rec.flush()
            description = describe(run)
            assert (description.passes, description.finished) == (passes, False)
    assert len(opened) == 2
    assert describe(run).finished and len(opened) == 2


def test_a_damaged_file_is_told_each_time(run: Path) -> None:
    damaged = sorted(run.glob("*.h5"))[1]
    os.truncate(damaged, 200)
    for _ in range(2):
        description = describe(run)
        assert description.passes == 8 and damaged.name in description.losses[0]


def test_a_folder_that_nobody_may_write_to_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.unlink(run / INDEX)

    def refuse(path: str) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(folder_index, "create_file", refuse)
    assert describe(run).passes == 12 and not (run / INDEX).exists()


def test_a_glob_leaves_nothing_behind(run: Path) -> None:
    os.unlink(run / INDEX)
    assert describe(f"{run}/main.[01].*").passes == 7 and not (run / INDEX).exists()
    assert describe([f"{run}/main.[01].*"]).passes == 7 and not (run / INDEX).exists()


def test_a_file_of_its_own_has_no_index(tmp_path: Path) -> None:
    with Recorder(MODEL, keep_module=True, sink=tmp_path / "run.h5"):
        MODEL(torch.zeros(2, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_a_long_recording_is_left_to_whoever_reads_it(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_index, "MAX_RECORDS_AT_CLOSE", 2)
    write(tmp_path / "run", 0, 3)
    assert not (tmp_path / "run" / INDEX).exists()
    assert describe(tmp_path / "run").passes == 3 and len(opened) == 1


def test_segments_of_one_recording_are_one_entry(tmp_path: Path, opened: list[str]) -> None:
    run = tmp_path / "run"
    with Recorder(MODEL, keep_module=True, sink=HDF5Sink(f"{run}/", block_bytes=4096, segment_bytes=1 << 20)):
        for _ in range(40):
            MODEL(torch.zeros(20_000))
    description = describe(run)
    assert opened == [] and description.passes == 40 and len(description.files) > 2
    (entry,) = json.loads((run / INDEX).read_text())["recordings"].values()
    assert len(entry[0]) == len(description.files)
