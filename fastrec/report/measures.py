"""What is measured of the values of a site in a stretch of the run: each measure with its definition and its source.

>>> definition_of("dead_units")
'Share of units that are 0 on every input of the bin.'

Documents, pages and tables take names and definitions from here, so that they all say the same.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from fastrec._errors import RecordKeyError, did_you_mean

Scale = Literal["value", "share", "count", "cosine"]

TAUS = (0.0, 0.025, 0.1)
"""The thresholds of dormancy that Sokar et al. look at."""

DELTA = 0.01
"""The share of the sum of singular values that an effective rank may leave out."""

TANH_EDGE = 0.97
SIGMOID_EDGES = (0.03, 0.97)
"""Beyond these a unit of a saturating function is called saturated: its slope is below 6 % (tanh) or 3 % (sigmoid)."""

MAX_RANK_BINS = 50
MAX_RANK_UNITS = 2048
MAX_UNITS = 4096


class Measure(msgspec.Struct, frozen=True):
    """One number of a site and a time bin.

    Arguments:
        name: its key in tables and in ``statistics[site]``.
        title: how people call it.
        scale: what kind of number it is: in the unit of the values, a share from 0 to 1, a count, or a cosine.
        definition: what it is, in one or two sentences.
        source: the paper that defines it; empty where it needs none.
        plot: the group of measures that are drawn together.
        alarm: whether a high or a low number is the bad one; empty where neither is.
    """

    name: str
    title: str
    scale: Scale
    definition: str
    source: str = ""
    plot: str = "values"
    alarm: Literal["high", "low", ""] = ""


SOKAR = "Sokar et al. 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning, arXiv 2302.12902"
KUMAR = (
    "Kumar et al. 2021, Implicit Under-Parameterization Inhibits Data-Efficient Deep Reinforcement Learning, "
    "arXiv 2010.14498"
)

_QUANTILE = (
    "{} of the finite values, from a histogram of 401 cells: 200 for each sign, log-spaced from 1e-6 to 1e6, and one "
    "for 0. It lies in the same cell as the exact one: within 16 % of it from 1e-6 to 1e6; less than that counts as 0."
)
_DORMANT = (
    "Share of units whose score is at most {}. The score of unit i of H is E|h_i| / ((1/H) sum_k E|h_k|), over all "
    "inputs of the bin. Said of activation functions only."
)

MEASURES: tuple[Measure, ...] = (
    Measure("mean", "mean", "value", "Mean of the finite values."),
    Measure("std", "standard deviation", "value", "Standard deviation of the finite values, about their mean."),
    Measure("min", "minimum", "value", "The least finite value."),
    Measure("q05", "5 %", "value", _QUANTILE.format("The 5 % quantile")),
    Measure("q25", "25 %", "value", _QUANTILE.format("The 25 % quantile")),
    Measure("median", "median", "value", _QUANTILE.format("The median")),
    Measure("q75", "75 %", "value", _QUANTILE.format("The 75 % quantile")),
    Measure("q95", "95 %", "value", _QUANTILE.format("The 95 % quantile")),
    Measure("max", "maximum", "value", "The largest finite value."),
    Measure("zeros", "zeros", "share", "Share of the values that are exactly 0.", plot="zeros", alarm="high"),
    Measure(
        "dead_units",
        "dead units",
        "share",
        "Share of units that are 0 on every input of the bin.",
        plot="zeros",
        alarm="high",
    ),
    *(
        Measure(
            f"dormant_{tau:g}",
            f"dormant units, tau {tau:g}",
            "share",
            _DORMANT.format(f"tau = {tau:g}"),
            SOKAR,
            plot="dormant",
            alarm="high",
        )
        for tau in TAUS
    ),
    Measure(
        "saturated",
        "saturated",
        "share",
        f"Share of the finite values at the flat ends of the function: |v| > {TANH_EDGE:g} of tanh, v < "
        f"{SIGMOID_EDGES[0]:g} or v > {SIGMOID_EDGES[1]:g} of sigmoid. The thresholds are ours. Only for these two.",
        plot="saturated",
        alarm="high",
    ),
    Measure(
        "norm",
        "feature norm",
        "value",
        "Mean L2 norm of a row: the units of one input, without rows in which a value is not finite.",
        plot="norm",
        alarm="high",
    ),
    Measure(
        "norm_q05", "feature norm, 5 %", "value", "The 5 % quantile of these norms, by a like histogram.", plot="norm"
    ),
    Measure(
        "norm_q95", "feature norm, 95 %", "value", "The 95 % quantile of these norms, by a like histogram.", plot="norm"
    ),
    Measure(
        "rank",
        "effective rank",
        "count",
        "The least k for which the k largest singular values of the matrix of rows make up 1 - delta of their sum, "
        f"delta = {DELTA:g}; from the eigenvalues of the Gram matrix. Of at most 4 rows per unit (at least 1,024), "
        f"spread evenly over the bin, on at most {MAX_RANK_BINS} bins; above {MAX_RANK_UNITS:,} units of that many of "
        "them, spread evenly.",
        KUMAR,
        plot="rank",
        alarm="low",
    ),
    Measure("nan", "NaN", "count", "How many values are not a number.", plot="bad", alarm="high"),
    Measure("inf", "infinite", "count", "How many values are infinite.", plot="bad", alarm="high"),
    Measure(
        "drift",
        "drift",
        "cosine",
        "Cosine of the mean vector of the bin with that of the first bin: 1 where the direction is the same.",
        plot="drift",
        alarm="low",
    ),
)

BY_NAME = {measure.name: measure for measure in MEASURES}

PLOTS: dict[str, str] = {
    "values": "values: median, 25 to 75 %, 5 to 95 %, and extremes",
    "zeros": "zeros and dead units",
    "dormant": "dormant units",
    "saturated": "saturation",
    "norm": "feature norm: mean, and 5 to 95 %",
    "rank": "effective rank",
    "bad": "NaN and infinity",
    "drift": "drift",
}
"""The plots of a site, and their titles."""

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def definition_of(name: str) -> str:
    """The definition of a measure; a RecordKeyError where there is none of this name."""
    if name not in BY_NAME:
        raise RecordKeyError(f"there is no measure {name!r}; {did_you_mean(name, BY_NAME)}")
    return BY_NAME[name].definition
