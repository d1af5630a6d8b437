"""Sums say what the definitions say, whatever is recorded, and however it is divided."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastrec.recording._arrays import real_array
from fastrec.report.measures import MAX_UNITS, MEASURES
from fastrec.report.rank import effective_rank, gram_of
from fastrec.report.sums import BadValue, Sums
from fastrec.report.units import SiteTraits
from tests.report import naive

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.complex32),
    *(torch.float8_e4m3fn, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16),
    *(torch.uint32, torch.uint64),
]


def sums_of(
    values: Sequence[Tensor], axis: int, *, activation: bool = True, saturating: str = "", ranks: bool = True
) -> Sums:
    """The sums of some records, each taken in by itself, the number of a record being that of its pass."""
    sums = Sums(SiteTraits(activation, saturating), ranks=ranks)  # type: ignore[arg-type]
    for index, value in enumerate(values):
        sums.add_values(real_array(value.unsqueeze(0)), axis, np.array([index]))
    return sums


def assert_measures(sums: Sums, expected: dict[str, float]) -> None:
    found = sums.measures()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-6, abs=1e-9, nan_ok=True), name


@st.composite
def records(draw: st.DrawFn) -> list[Tensor]:
    """Some records of one shape, with units that are dead, and sometimes values that are not finite."""
    shape = draw(st.sampled_from([(5,), (3, 4), (2, 3, 6), (1, 1), (4, 7)]))
    count = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from([1.0, 1e-20, 1e-6, 1e3, 1e18, 1e30]))
    values = rng.standard_normal((count, *shape)) * size + draw(st.sampled_from([0.0, 5 * size]))
    values[..., rng.random(shape[-1]) < 0.4] = 0
    values[values < 0] = 0 if draw(st.booleans()) else 1
    bad = draw(st.sampled_from([None, math.nan, math.inf, -math.inf]))
    if bad is not None:
        values[rng.random(values.shape) < 0.1] = bad
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return list(torch.from_numpy(values).to(dtype))


@settings(deadline=None, max_examples=200)
@given(records(), st.sampled_from(["", "tanh", "sigmoid"]))
def test_measures_are_what_their_definitions_say(values: list[Tensor], saturating: str) -> None:
    axis = values[0].ndim - 1
    expected = naive.measures(values, axis, saturating=saturating)
    expected.pop("rank", None)  # a hair's breadth from a threshold, rounding decides; see below
    assert_measures(sums_of(values, axis, saturating=saturating), expected)


@settings(deadline=None, max_examples=100)
@given(records(), st.integers(0, 6))
def test_two_stretches_put_together_say_what_all_values_say(values: list[Tensor], cut: int) -> None:
    axis = values[0].ndim - 1
    together = sums_of(values[:cut], axis)
    later = Sums(SiteTraits(True))
    later.add_values(real_array(torch.stack(values[cut:])), axis, np.arange(cut, len(values))) if values[cut:] else None
    together.merge(later)
    whole = sums_of(values, axis)
    assert_measures(together, {n: v for n, v in whole.measures().items() if n != "rank"})
    assert (together.bad, together.records) == (whole.bad, whole.records)
    assert together.counts.tolist() == whole.counts.tolist()


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_of_any_dtype_are_measured(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = [(torch.randn(3, 4) * 20) for _ in range(5)]
    values = [(value if dtype.is_signed else value.abs()).to(dtype) for value in values]
    expected = naive.measures(values, 1)
    expected.pop("rank")
    assert_measures(sums_of(values, 1), expected)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((), -1), ((4,), 0), ((2, 8, 5, 5), 1), ((8, 5, 5), 0), ((2, 3, 5, 7), 2), ((6, 1), 1), ((2, 4, 1, 1), 1)],
    ids=str,
)
def test_units_lie_on_any_axis(shape: tuple[int, ...], axis: int) -> None:
    torch.manual_seed(0)
    values = [torch.randn(shape).relu() for _ in range(6)]
    assert_measures(sums_of(values, axis), naive.measures(values, axis))


def test_a_channel_is_dead_when_it_is_0_over_the_batch_and_over_space() -> None:
    value = torch.ones(2, 4, 3, 3)
    value[:, 1] = 0  # dead
    value[0, 2] = 0  # 0 in one image alone
    assert sums_of([value], 1).measures()["dead_units"] == 0.25


def test_a_dormant_unit_may_be_alive() -> None:
    value = torch.tensor([[1.0, 1.0, 0.02, 0.0]])  # the mean over the units is 0.505
    measures = sums_of([value], 1).measures()
    assert (measures["dormant_0"], measures["dormant_0.025"], measures["dormant_0.1"]) == (0.25, 0.25, 0.5)
    assert math.isnan(sums_of([value], 1, activation=False).measures()["dormant_0"])


def test_where_all_units_are_0_all_are_dormant() -> None:
    assert sums_of([torch.zeros(3, 5)], 1).measures()["dormant_0.025"] == 1.0


def test_a_small_spread_of_large_values_is_not_lost() -> None:
    values = [1000 + 1e-2 * torch.randn(500, 64, dtype=torch.float64) for _ in range(4)]
    exact = torch.stack(values).std(correction=0).item()
    assert sums_of(values, 1).measures()["std"] == pytest.approx(exact, rel=1e-6)
    narrow = [value.float() for value in values]
    exact = torch.stack(narrow).double().std(correction=0).item()
    assert sums_of(narrow, 1).measures()["std"] == pytest.approx(exact, rel=1e-3)


def test_values_beyond_single_precision_are_measured() -> None:
    value = torch.tensor([[1e200, -1e200, 3.0]], dtype=torch.float64)
    measures = sums_of([value], 1).measures()
    assert (measures["min"], measures["max"], measures["inf"]) == (-1e200, 1e200, 0)
    assert measures["norm"] == pytest.approx(math.sqrt(2) * 1e200)
    assert math.isnan(measures["std"])  # its squares are beyond double precision


def test_the_first_pass_with_a_value_that_is_not_finite_is_named() -> None:
    values = [torch.ones(2, 3) for _ in range(5)]
    values[3][1, 2] = math.nan
    values[2][0, 0] = math.inf
    values[4][0, 0] = math.nan
    assert sums_of(values, 1).bad == BadValue(2, "inf")
    together = Sums(SiteTraits())
    together.add_values(real_array(torch.stack(values)), 1, np.arange(10, 15))
    assert together.bad == BadValue(12, "inf")


def test_only_values_that_are_not_numbers() -> None:
    measures = sums_of([torch.full((2, 3), math.nan)], 1).measures()
    assert (measures["nan"], measures["zeros"]) == (6, 0)
    assert all(math.isnan(measures[name]) for name in ("mean", "std", "min", "q05", "median", "norm"))


def test_a_record_larger_than_a_piece_is_one_record() -> None:
    torch.manual_seed(0)
    values = [torch.randn(3000, 200), torch.randn(3000, 200)]
    values[1][2999, 0] = math.nan
    sums = sums_of(values, 1)
    assert (sums.records, sums.bad) == (2, BadValue(1, "nan"))
    expected = naive.measures(values, 1)
    expected.pop("rank")
    assert_measures(sums, expected)


def test_values_without_elements_are_records_and_nothing_else() -> None:
    sums = sums_of([torch.empty(0, 4), torch.empty(3, 0)], 1)
    assert (sums.records, sums.values) == (2, 0)
    assert all(math.isnan(value) for value in sums.measures().values())


def test_where_the_number_of_units_varies_nothing_is_said_of_units() -> None:
    sums = sums_of([torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 3)], 1)
    measures = sums.measures()
    assert sums.units_vary and math.isnan(measures["dead_units"]) and math.isnan(measures["rank"])
    assert (measures["mean"], measures["zeros"]) == (1.0, 0.0)
    other = sums_of([torch.ones(2, 3)], 1)
    other.merge(sums)
    assert other.units_vary and other.units is None


def test_the_drift_is_the_cosine_with_the_first_mean_vector() -> None:
    torch.manual_seed(0)
    before, after = [torch.randn(9, 5)], [torch.randn(9, 5)]
    first = sums_of(before, 1).units
    assert first is not None
    found = sums_of(after, 1).measures(first.mean_vector())["drift"]
    assert found == pytest.approx(naive.cosine(naive.vector(before, 1), naive.vector(after, 1)))


def test_many_units_are_looked_at_in_part() -> None:
    value = torch.ones(2, 3 * MAX_UNITS)
    value[:, ::2] = 0
    sums = sums_of([value], 1, ranks=False)
    assert sums.units is not None and len(sums.units.signed) == MAX_UNITS
    assert sums.measures()["dead_units"] == pytest.approx(0.5, abs=0.02)
    assert sums.measures()["zeros"] == 0.5


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_the_effective_rank_is_that_of_singular_values(count: int, units: int, inner: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, inner)) @ rng.standard_normal((inner, units))
    singular = np.linalg.svd(rows, compute_uv=False)
    shares = np.cumsum(singular) / singular.sum()
    if np.abs(shares - 0.99).min() < 1e-6:  # a hair's breadth from the threshold, where rounding decides
        return
    assert effective_rank(gram_of(rows)) == naive.rank(singular)


def test_the_rank_of_nothing_is_0() -> None:
    assert effective_rank(np.zeros((4, 4))) == 0
    assert sums_of([torch.zeros(3, 4)], 1).measures()["rank"] == 0


def test_closed_ranks_are_averaged() -> None:
    one, two = sums_of([torch.eye(4)], 1), sums_of([torch.ones(4, 4)], 1)
    one.close_rank()
    two.close_rank()
    one.merge(two)
    assert one.gram is None and one.measures()["rank"] == 2.5


def test_each_measure_has_a_number_or_none() -> None:
    assert set(sums_of([torch.ones(2, 2)], 1).measures()) == {measure.name for measure in MEASURES}
