"""Which process recorded: what the launchers say, and what stands in a file."""

import socket
from pathlib import Path

import pytest
import torch

import fastrec
from fastrec import Recorder
from fastrec._errors import OptionError
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5.process import ATTEMPT_VARIABLES, RANK_VARIABLES, current_process
from fastrec.sinks.hdf5.source import HDF5Source

MODEL = torch.nn.Identity()
VARIABLES = {name for pair in RANK_VARIABLES for name in pair} | {
    *ATTEMPT_VARIABLES,
    *("NODE_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ROLE_NAME"),
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "rank", "world_size"),
    [
        ({}, -1, 0),
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "0"}, 3, 4),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, 5, 8),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, 1, 2),
        ({"PMI_RANK": "0"}, 0, 0),
        ({"NODE_RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, 1, 2),
        ({"NODE_RANK": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, 9, 0),
        ({"NODE_RANK": "2", "LOCAL_RANK": "1"}, -1, 0),  # how many there are on the other nodes is not said
        ({"LOCAL_RANK": "1"}, -1, 0),
        ({"RANK": "-1"}, -1, 0),
    ],
)
def test_the_rank_is_what_the_launcher_says(
    variables: dict[str, str], rank: int, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    process = current_process()
    assert (process.rank, process.world_size) == (rank, world_size)


def test_a_file_says_which_process_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "TORCHELASTIC_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    with Recorder(MODEL, keep_module=True, sink=HDF5Sink(tmp_path / "run.h5", role="rollout")):
        MODEL(torch.ones(2))
    process = HDF5Source(tmp_path / "run.h5").process()
    assert (process.rank, process.world_size, process.role, process.attempt) == (2, 3, "rollout", 1)
    assert (process.worker, process.host) == (-1, socket.gethostname())


def test_each_recorder_writes_its_own_file_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "1")
    for i in range(2):
        with Recorder(MODEL, keep_module=True, sink="run/"):
            MODEL(torch.full((2,), float(i)))
    with Recorder(MODEL, keep_module=True, sink=HDF5Sink(tmp_path / "run", role="roll out")):
        MODEL(torch.ones(2))
    names = sorted(path.name.split(".") for path in (tmp_path / "run").glob("*.h5"))
    assert [(role, rank) for role, rank, _, _ in names] == [("main", "1"), ("main", "1"), ("roll-out", "1")]
    assert all(len(attempt) == 8 for _, _, attempt, _ in names)
    values = [fastrec.load(path).stack(":out")[0, 0].item() for path in (tmp_path / "run").glob("main*")]
    assert sorted(values) == [0.0, 1.0]


def test_options_that_mean_nothing_in_a_folder_are_refused(tmp_path: Path) -> None:
    for name in ("overwrite", "append"):
        with pytest.raises(OptionError, match=rf"{name}=True\): in a folder each recorder writes a file of its own"):
            HDF5Sink(f"{tmp_path}/run/", **{name: True})
    with pytest.raises(OptionError, match="role=''.*give a word for what this process does"):
        HDF5Sink(tmp_path / "run.h5", role="")
