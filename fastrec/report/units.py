"""Which axis of a value counts its units, and which measures a site can have.

>>> from fastrec.events.sites import Site
>>> unit_axis(Site("0/conv2d", "op", "conv2d", "conv2d"), (8, 16, 5, 5), ())
1
>>> unit_axis(Site("head/linear", "op", "linear", "linear"), (8, 10, 32), ())
2

Units are the last axis, or the channels of a convolution, which are counted over the batch and over space. A tensor
does not say which it is: what made it does, and an activation function or a sum keeps the layout of what came before
it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import msgspec

from fastrec._errors import OptionError
from fastrec.events.sites import Catalog, RecordMeta, Site

ACTIVATIONS = frozenset(
    "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leakyrelu logsigmoid mish prelu relu relu6 rrelu selu "
    "sigmoid silu softplus softshrink softsign tanh tanhshrink threshold".split()
)

SATURATING: dict[str, Literal["tanh", "sigmoid"]] = {"tanh": "tanh", "sigmoid": "sigmoid"}

# What leaves the axes where they are, so that the op before it tells what they mean.
_KEEPS_LAYOUT = ACTIVATIONS | frozenset(
    "add sub mul div neg abs clamp clone contiguous detach dropout alphadropout featurealphadropout identity to float "
    "half pad cat normalize exp sqrt square dropout1d dropout2d dropout3d droppath stochasticdepth".split()
)
_SPATIAL = re.compile(r"(?:lazy)?(?:conv|convtranspose|(?:adaptive|fractional|lp)?(?:max|avg)?(?:un)?pool)([123])d")
_CHANNELS_SECOND = re.compile(
    r"(?:lazy)?(?:sync)?(?:batch|group|instance|localresponse)norm(?:[123]d)?|interpolate|upsample|pixel(?:un)?shuffle|channelshuffle"
)


def unit_axis(site: Site, shape: tuple[int, ...], earlier: Sequence[str] | None) -> int:
    """The axis of a value that counts its units; -1 where it has no axes.

    Arguments:
        site: where the value appeared.
        shape: its shape.
        earlier: the types of the ops before it in its pass, the newest last; None where ops were not seen.
    """
    last = len(shape) - 1
    layer_type = site.layer_type
    own = _axis_by_type(layer_type, len(shape), unbatched=True)
    if own is not None:
        return own
    is_module = site.kind in ("module_enter", "module_exit")
    if layer_type not in _KEEPS_LAYOUT and not (is_module and layer_type not in ("linear", "layernorm", "embedding")):
        return last
    for before in reversed(earlier or ()):
        if before in _KEEPS_LAYOUT:
            continue
        axis = _axis_by_type(before, len(shape), unbatched=False)
        return last if axis is None else axis
    # Nothing tells. Where images go through a model in torch's own order, channels come second.
    return 1 if len(shape) in (4, 5) else last


def _axis_by_type(layer_type: str, dims: int, *, unbatched: bool) -> int | None:
    """The axis of the channels that a layer of this type makes; None where it makes none."""
    match = _SPATIAL.fullmatch(layer_type)
    if match is not None:
        spatial = int(match[1])
        if dims == spatial + 2 or (unbatched and dims == spatial + 1):
            return dims - spatial - 1
        return None
    return 1 if dims > 2 and _CHANNELS_SECOND.fullmatch(layer_type) else None


class SiteTraits(msgspec.Struct, frozen=True):
    """What of a site decides how its values are measured."""

    is_activation: bool = False
    saturating: Literal["tanh", "sigmoid", ""] = ""

    @classmethod
    def of(cls, site: Site) -> SiteTraits:
        """The traits of a site."""
        return cls(site.layer_type in ACTIVATIONS, SATURATING.get(site.layer_type, ""))


class UnitAxes:
    """The axis of the units of each site, as a user says, or else by what made its values.

    >>> UnitAxes({"blocks.*": "last"})
    Traceback (most recent call last):
        ...
    fastrec._errors.OptionError: unit_axis={'blocks.*': 'last'}: give the axis of each glob as a number, such as -1
    """

    def __init__(self, axes: Mapping[str, int] | None = None) -> None:
        given: Any = axes or {}
        if not isinstance(given, Mapping) or not all(
            isinstance(glob, str) and isinstance(axis, int) and not isinstance(axis, bool)
            for glob, axis in given.items()
        ):
            raise OptionError(f"unit_axis={axes!r}: give the axis of each glob as a number, such as -1")
        self._axes: dict[str, int] = dict(given)

    def of(self, catalog: Catalog, meta: RecordMeta) -> int:
        """The axis that counts the units of the values of a meta."""
        site, dims = catalog.sites[meta.site], len(meta.shape)
        for glob, axis in self._axes.items():
            if fnmatchcase(site.name, glob):
                if not -dims <= axis < dims:
                    raise OptionError(
                        f"unit_axis={{{glob!r}: {axis}}}: {site.name!r} has values of shape {meta.shape}, which have "
                        f"the axes 0 to {dims - 1}"
                    )
                return axis % dims
        earlier = None if meta.recent_ops is None else [catalog.sites[op].layer_type for op, _, _ in meta.recent_ops]
        return unit_axis(site, meta.shape, earlier)
