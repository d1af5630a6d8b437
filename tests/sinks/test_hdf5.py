"""Recording to files: the contract, the life of a file, and what may go wrong."""

from pathlib import Path

import pytest
import torch

from fastrec.recording._source import Source
from fastrec.sinks import HDF5Sink
from fastrec.sinks._protocol import Sink
from fastrec.sinks.hdf5.source import HDF5Source
from tests.contracts.sink import Rig, SinkContract, check_source


def source_of(rig: Rig) -> Source:
    assert isinstance(rig.sink, HDF5Sink)
    return HDF5Source(rig.sink.path)


class TestHDF5SinkContractWhileItGrows(SinkContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make(self) -> Sink:
        return HDF5Sink(self.folder / "run.h5")

    def read(self, rig: Rig) -> Source:
        assert isinstance(rig.sink, HDF5Sink)
        rig.sink.flush()
        return source_of(rig)


class TestHDF5SinkContractOnceFinished(TestHDF5SinkContractWhileItGrows):
    def read(self, rig: Rig) -> Source:
        rig.pass_log.close()
        return source_of(rig)


class TestHDF5SinkContractInManySegments(TestHDF5SinkContractOnceFinished):
    def make(self) -> Sink:
        return HDF5Sink(self.folder / "run.h5", segment_bytes=1 << 20, flush_seconds=0.01, block_bytes=4096)


@pytest.mark.parametrize("rounds", range(5))
def test_one_pass_may_lie_in_many_segments(tmp_path: Path, rounds: int) -> None:
    rig = Rig(HDF5Sink(tmp_path / "run.h5", segment_bytes=1 << 20, queue_bytes=1 << 18, flush_seconds=100))
    info, values = rig.begin(), [torch.full((300, 400 + 2 * (i % 2)), float(i)) for i in range(40)]
    rig.commit(info, [rig.append("ab"[i % 2], value) for i, value in enumerate(values)])
    rig.pass_log.close()
    assert len(list(tmp_path.iterdir())) > 2
    check_source(source_of(rig), [(0, "ab"[i % 2], value) for i, value in enumerate(values)])
