"""Rows read where they are indexed: the same as an array of all of them, from RAM and from files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastrec
from fastrec import CaptureSpec, Recorder, Recording
from fastrec._errors import OptionError, RaggedError, RecordKeyError
from fastrec.sinks import HDF5Sink, RAMSink

SIZES = [3, 3, 1, 4, 1, 3, 2, 2, 5, 1]


def recorded(folder: Path, sizes: list[int], capture: CaptureSpec | None = None) -> list[Recording]:
    """The same session from RAM and from a file."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    sinks = [RAMSink(), HDF5Sink(folder / "run.h5", block_bytes=64)]
    with Recorder(model, keep_op=True, sink=sinks, capture=capture or CaptureSpec()) as rec:
        for size in sizes:
            model(torch.randn(size, 2))
    return [rec.recording, fastrec.load(folder / "run.h5")]


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    return recorded(tmp_path_factory.mktemp("ragged"), SIZES)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    return recorded(tmp_path_factory.mktemp("even"), [4] * 25)


def samples(recording: Recording) -> Tensor:
    return torch.cat([record.activation for record in recording["tanh_1"]])


indices = st.one_of(
    st.slices(25),
    st.integers(-25, 24),
    st.lists(st.integers(-25, 24), max_size=40),
    st.lists(st.booleans(), min_size=25, max_size=25),
)


@settings(max_examples=60)
@given(index=indices, by_sample=st.booleans())
def test_any_index_reads_what_it_would_of_all(
    ragged: list[Recording], even: list[Recording], index: object, by_sample: bool
) -> None:
    for recording in ragged if by_sample else even:
        rows = recording.rows("tanh_1", by="sample" if by_sample else None)
        whole = samples(recording) if by_sample else recording.stack("tanh_1")
        assert len(rows) == len(whole) == 25
        if isinstance(index, slice):
            assert torch.equal(rows[index], torch.from_numpy(whole.numpy()[index].copy()))
            continue
        expected = whole[torch.tensor(index, dtype=None if index else torch.long) if isinstance(index, list) else index]
        assert torch.equal(rows[index], expected)
        if isinstance(index, list):
            assert torch.equal(rows[np.array(index, dtype=None if index else int)], expected)
            assert torch.equal(rows[torch.tensor(index, dtype=None if index else torch.long)], expected)


def test_rows_have_the_shape_of_the_whole(ragged: list[Recording], even: list[Recording]) -> None:
    for recording in even:
        rows = recording.rows("tanh_1")
        assert (rows.shape, rows.ndim, rows.dtype) == ((25, 4, 3), 3, torch.float32)
        assert (rows.row_bytes, rows.nbytes, len(rows)) == (48, 1200, 25)
        assert repr(rows) == "<Rows: 25x4x3 float32>"
        assert rows.pass_index.tolist() == list(range(25))
    for recording in ragged:
        rows = recording.rows("tanh_1", by="sample")
        assert rows.shape == (25, 3)
        assert rows.pass_index.tolist() == [i for i, size in enumerate(SIZES) for _ in range(size)]


def test_rows_are_arrays_for_numpy(even: list[Recording]) -> None:
    for recording in even:
        rows = recording.rows("tanh_1")
        assert np.array_equal(np.asarray(rows), recording.to_numpy("tanh_1"))
        assert np.asarray(rows, dtype=np.float64).dtype == np.float64
        assert torch.equal(torch.stack(list(rows)), recording.stack("tanh_1"))


def test_values_that_differ_only_in_their_batch_need_samples(ragged: list[Recording]) -> None:
    for recording in ragged:
        with pytest.raises(RaggedError, match=r"has values of \(3, 3\) torch.float32, .*; give rows\(\), by='sample'"):
            recording.rows("tanh_1")


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (25, IndexError, "range"),
        ([3, 25], IndexError, "there are 25 rows, and the index goes from 3 to 25"),
        ([-26], IndexError, "there are 25 rows"),
        ([True], OptionError, "one bool per row"),
        ([[1]], OptionError, "give a number, a slice"),
        ([0.5], OptionError, "give a number, a slice"),
    ],
)
def test_an_index_that_is_none_is_an_error(
    even: list[Recording], index: object, error: type[Exception], message: str
) -> None:
    for recording in even:
        with pytest.raises(error, match=message):
            recording.rows("tanh_1")[index]


def test_rows_that_can_not_be_are_errors(even: list[Recording]) -> None:
    for recording in even:
        with pytest.raises(OptionError, match="give by='sample', or leave it out"):
            recording.rows("tanh_1", by="pass")
        with pytest.raises(RecordKeyError, match="did you mean"):
            recording.rows("tanh_2")
        with pytest.raises(RecordKeyError, match="was kept without its gradient"):
            recording.rows("tanh_1", part="gradient")


def test_scalars_have_no_samples(tmp_path: Path) -> None:
    pooled = CaptureSpec(transform=lambda t: t.sum(), save_raw=False)
    for recording in recorded(tmp_path, SIZES, pooled):
        assert recording.rows("tanh_1").shape == (10,)
        assert torch.equal(recording.rows("tanh_1")[2:4], recording.stack("tanh_1")[2:4])
        with pytest.raises(RaggedError, match="values without dimensions"):
            recording.rows("tanh_1", by="sample")


def test_the_shape_that_a_transform_made_counts(tmp_path: Path) -> None:
    for recording in recorded(tmp_path, SIZES, CaptureSpec(transform=lambda t: t[:1, :2])):
        assert recording.rows("tanh_1", part="transformed_activation").shape == (10, 1, 2)
        assert recording.rows("tanh_1", by="sample").shape == (25, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_any_dtype_has_rows(tmp_path: Path, dtype: torch.dtype) -> None:
    for recording in recorded(tmp_path, [2, 3], CaptureSpec(dtype=dtype)):
        rows = recording.rows("tanh_1", by="sample")
        assert rows.dtype is dtype and torch.equal(rows[1:4], samples(recording)[1:4])
        assert torch.equal(rows[[4, 0]], samples(recording)[[4, 0]])


def test_gradients_have_rows() -> None:
    model = nn.Linear(2, 3)
    with Recorder(model, keep_op=True, capture=CaptureSpec(save_gradient=True)) as rec:
        for size in (2, 1, 3):
            model(torch.randn(size, 2)).sum().backward()
        model(torch.randn(1, 2))
    recording = rec.recording.select(passes=slice(0, 3))
    assert recording.rows("linear_1", by="sample", part="gradient")[:].tolist() == [[1.0] * 3] * 6
    with pytest.raises(fastrec.FastrecError, match="no gradient has reached 'linear_1' yet"):
        rec.recording.rows("linear_1", by="sample", part="gradient")


def test_rows_of_attached_values_are_attached() -> None:
    model = nn.Linear(2, 3)
    with Recorder(model, keep_op=True, capture=CaptureSpec(keep_grad=True)) as rec:
        for _ in range(3):
            model(torch.randn(2, 2))
    assert rec.recording.rows("linear_1")[:2].requires_grad
    assert rec.recording.rows("linear_1", by="sample")[:2].requires_grad


def test_values_of_no_samples_take_no_room(tmp_path: Path) -> None:
    for recording in recorded(tmp_path, [2, 0, 3, 0]):
        rows = recording.rows("tanh_1", by="sample")
        assert len(rows) == 5 and torch.equal(rows[:], samples(recording))
        assert torch.equal(rows[[4, 2]], samples(recording)[[4, 2]])


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=12), nbytes=st.integers(1, 200))
def test_edges_divide_all_rows(sizes: list[int], nbytes: int) -> None:
    model = nn.Tanh()
    with Recorder(model, keep_op=True) as rec:
        for size in sizes:
            model(torch.randn(size, 3))
    rows = rec.recording.rows("tanh_1", by="sample")
    edges = rows.edges(nbytes).tolist()
    assert edges == sorted(set(edges)) and set(edges) >= {0, len(rows)}
    stops = set(np.cumsum(sizes).tolist()) | {0}
    assert set(edges) <= stops
    assert all(12 * (stop - start) < nbytes + 12 * max(sizes) for start, stop in zip(edges, edges[1:], strict=False))
