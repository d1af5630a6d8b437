"""The histogram counts each value in the cell it lies in, and its quantiles lie where the exact ones do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastrec.report.histogram import CELLS, EDGES, FEW, HIGH, LOW, SIDE, cell_counts, cell_edges, quantiles

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def naive_cell(value: float) -> int:
    """The cell of a value, by comparing."""
    if abs(value) < EDGES[0]:
        return SIDE
    cell = min(int(np.searchsorted(EDGES, abs(value), side="right")) - 1, SIDE - 1)
    return SIDE + 1 + cell if value > 0 else SIDE - 1 - cell


def test_edges_are_log_spaced_from_low_to_high() -> None:
    assert EDGES[0] == pytest.approx(LOW, rel=0.004) and EDGES[-1] == pytest.approx(HIGH, rel=0.004)
    assert len(EDGES) == SIDE + 1 and 1.13 < (EDGES[1:] / EDGES[:-1]).min() <= (EDGES[1:] / EDGES[:-1]).max() < 1.16


@settings(deadline=None)
@given(arrays(np.float32, st.integers(0, 60), elements=FLOATS))
def test_each_value_is_counted_in_its_cell(values: np.ndarray) -> None:
    expected = np.bincount([naive_cell(float(value)) for value in values], minlength=CELLS)
    assert cell_counts(values).tolist() == expected.tolist()


@pytest.mark.parametrize("count", [FEW, FEW + 1, 3 * FEW])
def test_both_ways_of_counting_say_the_same(count: int) -> None:
    values = np.random.default_rng(0).lognormal(0, 6, count).astype(np.float32)
    values[::3] *= -1
    values[::7] = 0
    values[1::50] = EDGES[5]
    expected = np.bincount([naive_cell(float(value)) for value in values], minlength=CELLS)
    assert cell_counts(values).tolist() == expected.tolist()


@settings(deadline=None)
@given(
    arrays(np.float32, st.integers(1, 200), elements=st.one_of(FLOATS, st.floats(-8, 8, width=32), st.just(0.0))),
    st.sampled_from([0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0]),
)
def test_a_quantile_lies_in_the_cell_of_the_exact_one(values: np.ndarray, share: float) -> None:
    least, most = float(values.min()), float(values.max())
    (found,) = quantiles(cell_counts(values), [share], least, most)
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert least <= found <= most
    edges = cell_edges(least, most)
    cell = naive_cell(exact)
    if cell == SIDE:
        assert found == 0 or abs(found) <= EDGES[0]
    else:
        assert edges[cell] <= found <= edges[cell + 1]


def test_a_quantile_is_within_a_cell_of_the_exact_one() -> None:
    values = np.random.default_rng(1).standard_normal(100_000).astype(np.float32) * 3
    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    found = quantiles(cell_counts(values), shares, float(values.min()), float(values.max()))
    assert np.abs(found - np.quantile(values, shares)) == pytest.approx(0, abs=0.1)


def test_nothing_has_no_quantiles() -> None:
    assert np.isnan(quantiles(np.zeros(CELLS, np.int64), [0.5], 0.0, 0.0)).all()
