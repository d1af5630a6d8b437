"""What was written anew is the same."""

from pathlib import Path

import h5py
import pytest
import torch

import fastrec
from fastrec import Recorder, load
from fastrec.files import repack, verify
from fastrec.predicates import module, op
from fastrec.sinks import HDF5Sink
from tests.files.same import assert_same

DTYPES = "bool uint8 int64 float16 bfloat16 float32 float64 float8_e4m3fn float8_e5m2 complex32 complex64".split()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def record(path: str, passes: int = 20, **options: object) -> fastrec.Recording:
    """Ragged shapes, transforms, contexts alone, phases, late columns, sample ids and a failed pass."""
    model = Model()
    keep = module("first") | module("second").with_(transform=lambda value: value.sum(0), save_raw=False)
    keep_op = op("relu") | op("linear").with_(save_activation=False)
    with Recorder(model, keep_module=keep, keep_op=keep_op, sink=HDF5Sink(path, **options)) as rec:
        for i in range(passes):
            with rec.phase("rollout" if i % 4 else "eval"), torch.set_grad_enabled(i % 2 == 0):
                rec.log(torch.full((1 + i % 3, 3), float(i)), sample_id=f"s{i}" if i % 5 == 0 else None)
                rec.step(reward=[i, -i], **({"value": i / 2} if i > 7 else {}))
        with pytest.raises(RuntimeError):
            model(torch.ones(2, 2))
        model(torch.ones(2, 3))
    return load(path)


@pytest.mark.parametrize("compression", [None, "gzip", "gzip:9", "lzf"])
def test_a_recording_written_anew_is_the_same(compression: str | None) -> None:
    original = record("run.h5")
    result = repack("run.h5", "small.h5", compression=compression)
    copied = load("small.h5")
    assert_same(copied, original)
    assert (copied.n_passes, result.records) == (original.n_passes, len(original))
    assert copied.summary() == original.summary()
    verified = verify("small.h5")
    assert (verified.damage, verified.unchecked) == ([], 0)


def test_several_files_become_one() -> None:
    original = record("run.h5", passes=1500, segment_bytes=1 << 20, block_bytes=1 << 12)
    assert Path("run.00001.h5").exists()
    repack("run.h5", "one.h5")
    for path in Path().glob("run*"):
        path.rename(f"moved-{path}")  # nothing of it is needed
    assert len(load("one.h5")) == len(original)
    assert verify("one.h5").damage == []
    with h5py.File("one.h5") as file:
        assert not any(data_set.is_virtual for data_set in file["data"].values())


def test_a_recording_that_was_continued_becomes_one_session() -> None:
    record("run.h5", passes=7)
    record("run.h5", passes=9, append=True)
    original = load("run.h5")
    repack("run.h5", "one.h5")
    assert_same(load("one.h5"), original)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_values_are_cast(dtype: torch.dtype) -> None:
    original = record("run.h5")
    repack("run.h5", "cast.h5", dtype=dtype)
    copied = load("cast.h5")
    assert_same(copied, original, cast=lambda value: value.to(dtype))
    assert {facts.dtypes for facts in copied.sites.values() if facts.name == "first"} == {(str(dtype)[6:],)}


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_every_dtype_and_shape(compression: str | None) -> None:
    model = torch.nn.Identity()
    with Recorder(model, keep_module=True, sink="run.h5"):
        for dtype in DTYPES:
            for shape in ((), (3,), (2, 0), (2, 3, 4)):
                model(torch.randint(0, 2, shape).to(getattr(torch, dtype)))
    repack("run.h5", "one.h5", compression=compression)
    assert_same(load("one.h5"), load("run.h5"))


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
def test_what_is_no_floating_value_is_not_cast() -> None:
    model = torch.nn.Identity()
    with Recorder(model, keep_module=True, sink="run.h5"):
        for dtype in DTYPES:
            model(torch.ones(2).to(getattr(torch, dtype)))
    repack("run.h5", "cast.h5", dtype=torch.float16)
    dtypes = [record.activation.dtype for record in load("cast.h5")]
    wanted = [getattr(torch, name) for name in DTYPES]
    assert dtypes == [torch.float16 if dtype.is_floating_point else dtype for dtype in wanted]


def test_rows_of_many_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    original = record("run.h5")
    monkeypatch.setattr("fastrec.sinks.hdf5.structure.CHUNK_BYTES", 100)
    reports: list[tuple[int, int]] = []
    repack("run.h5", "one.h5", progress=lambda done, total: reports.append((done, total)))
    assert_same(load("one.h5"), original)
    assert verify("one.h5").damage == []
    assert reports[-1][0] == reports[-1][1]


def test_other_tools_see_the_values() -> None:
    original = record("run.h5")
    repack("run.h5", "one.h5", compression="gzip")
    with h5py.File("one.h5") as file:
        names = {(data_set.attrs["of"], data_set.shape[1:]): data_set[:] for data_set in file["data"].values()}
    relus = original.select(batch=2).stack("relu_1").numpy()
    assert (names["/relu", (2, 4)] == relus).all()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"compression": "zip"}, r"repack\(compression='zip'\): give 'gzip' or 'lzf'"),
        ({"dtype": torch.int32}, r"repack\(dtype=torch.int32\): give a floating dtype"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], error: str) -> None:
    record("run.h5", passes=1)
    with pytest.raises(fastrec.FastrecError, match=error):
        repack("run.h5", "one.h5", **options)


def test_nothing_is_written_over_and_nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    record("run.h5", passes=1)
    Path("there.h5").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="'there.h5' exists; give another path"):
        repack("run.h5", "there.h5")
    assert Path("there.h5").read_bytes() == b"mine"

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastrec.sinks.hdf5.structure.add_trailer", full)
    with pytest.raises(OSError, match="'one.h5' can't be written: No space left on device"):
        repack("run.h5", "one.h5")
    assert sorted(path.name for path in Path().iterdir()) == ["run.h5", "there.h5"]
