"""When other values of a parent may leave the result unchanged, rule by rule.

A validation puts random values in a parent's place and expects another result. If several of them have made no
difference, the rules are tried. Each rule looks at the call itself: its function, which argument the parent is, and the
values of the other arguments. A rule about a function in general would hide real errors in the graph: a product may
ignore a factor if the other one is zero everywhere, but not otherwise.

To add a rule, write a function of a Trial, and add it to ``EXEMPTIONS`` with the reason why it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor


class Trial(msgspec.Struct, frozen=True):
    """A call whose result does not depend on one of its parents.

    ``place`` is the first argument that is the parent: a position, or the name of a keyword. ``args`` and ``kwargs``
    hold tensors, ``value`` is that of the parent, and ``results`` are what the call returned.
    """

    layer_type: str
    inplace: bool
    place: int | str
    value: Tensor
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    results: Sequence[Tensor]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def others(self) -> Iterator[Any]:
        """All arguments except the parent; those in lists one by one."""
        for argument in (*self.args, *self.kwargs.values()):
            for item in argument if isinstance(argument, tuple | list) else (argument,):
                if item is not self.value:
                    yield item


class Exemption(msgspec.Struct, frozen=True):
    """A rule: its name, why it is right, and when it holds."""

    name: str
    why: str
    holds: Callable[[Trial], bool]


def exemption(trial: Trial) -> Exemption | None:
    """The first rule that holds, None if the result should have changed."""
    return next((rule for rule in EXEMPTIONS if rule.holds(trial)), None)


def _nothing_to_change(trial: Trial) -> bool:
    return trial.value.numel() == 0 or all(result.numel() == 0 for result in trial.results)


_READ_THE_FORM = frozenset(
    "zeroslike oneslike emptylike fulllike randlike randnlike randintlike newzeros newones newfull newempty newtensor "
    "emptystrided resizeas".split()
)

_READ_THE_FORM_OF_ANOTHER = frozenset("expandas viewas reshapeas typeas to".split())


def _form_only(trial: Trial) -> bool:
    if trial.layer_type in _READ_THE_FORM_OF_ANOTHER:
        return trial.place != 0
    return trial.layer_type in _READ_THE_FORM


_OVERWRITE = frozenset(
    "copy fill zero normal uniform bernoulli random exponential geometric lognormal cauchy setitem indexcopy indexfill "
    "indexput maskedfill maskedscatter scatter truncnormal constant ones zeros eye set logicalnot".split()
)


def _overwritten(trial: Trial) -> bool:
    if trial.place == "out":
        return True
    return trial.inplace and trial.place == 0 and trial.layer_type in _OVERWRITE


def _statistics(trial: Trial) -> bool:
    if trial.layer_type == "batchnorm":
        is_training = bool(trial.argument(5, "training", False))
    elif trial.layer_type == "instancenorm":
        is_training = bool(trial.argument(5, "use_input_stats", True))
    else:
        return False
    return is_training and trial.place in (1, 2, "running_mean", "running_var")


_Places = tuple[int | str, ...]

_ANY: _Places = ("*",)

_INPUT: _Places = (0, "input")

_INPUT_OR_WEIGHT: _Places = (0, "input", 1, "weight")


def _products() -> Iterator[tuple[str, _Places, _Places]]:
    """By function: arguments that can't change the result if one of the factors, named second, is zero everywhere."""
    for name in "mul matmul mm bmm mv dot outer ger kron einsum tensordot cross inner vecdot".split():
        yield name, _ANY, _ANY
    for name in "linear bilinear conv1d conv2d conv3d convtranspose1d convtranspose2d convtranspose3d".split():
        yield name, _INPUT_OR_WEIGHT, _INPUT_OR_WEIGHT
    for name in "addmm addmv addbmm baddbmm addcmul addr".split():
        yield name, (1, 2), (1, 2)
    for name in "layernorm groupnorm rmsnorm".split():
        yield name, _INPUT, (2, "weight")
    yield "batchnorm", (0, 1, 2, "input"), (3, "weight")
    yield "instancenorm", _INPUT, (3, "weight")
    yield "div", (1, "other"), (0,)
    yield "pow", (0,), (1, "exponent")
    yield "lerp", (1, "end"), (2, "weight")
    yield "scaleddotproductattention", (0, 1, 3, "query", "key", "attn_mask"), (2, "value")


_PRODUCTS = {name: (places, factors) for name, places, factors in _products()}


def _zero_factor(trial: Trial) -> bool:
    if trial.layer_type == "batchnorm" and trial.place in (2, "running_var"):
        # An input that equals the mean is zero, whatever it is divided by.
        centred = trial.args[0] - trial.argument(1, "running_mean").reshape(-1, *(1,) * (trial.args[0].dim() - 2))
        if _is_zero(centred):
            return True
    places, factors = _PRODUCTS.get(trial.layer_type, ((), ()))
    if places != _ANY and trial.place not in places:
        return False
    if factors == _ANY:
        return any(map(_is_zero, trial.others()))
    arguments: dict[int | str, Any] = dict((*enumerate(trial.args), *trial.kwargs.items()))
    return any(_is_zero(arguments[p]) for p in factors if p in arguments and arguments[p] is not trial.value)


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 0 and not bool(value.any())
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0


_LOOKUPS = frozenset("embedding embeddingbag getitem gather indexselect select take takealongdim gridsample".split())


def _all_alike(trial: Trial) -> bool:
    source = trial.argument(1, "weight") if trial.layer_type in ("embedding", "embeddingbag") else trial.args[0]
    if trial.layer_type not in _LOOKUPS or not isinstance(source, Tensor) or source is trial.value:
        return False
    rows = source.flatten(1) if source.dim() > 1 else source.unsqueeze(-1)
    return source.numel() > 0 and bool((rows == rows[:1]).all())


_NORMS = frozenset("layernorm groupnorm instancenorm batchnorm rmsnorm".split())


def _one_element(trial: Trial) -> bool:
    (result, *_) = trial.results
    if trial.layer_type in ("softmax", "softmin"):
        return bool((result == 1).all())
    if trial.layer_type == "logsoftmax":
        return bool((result == 0).all())
    if trial.layer_type == "scaleddotproductattention":
        # With a single key, or a single query that may only attend to the first key, all weight is on that key.
        key = trial.argument(1, "key")
        query = trial.argument(0, "query")
        is_causal = bool(trial.argument(5, "is_causal", False))
        has_one_key = key.shape[-2] == 1 or (is_causal and query.shape[-2] == 1)
        return trial.place != 2 and trial.place != "value" and has_one_key
    if trial.layer_type in _NORMS and trial.place in (0, "input"):
        return _group_size(trial) == 1
    return False


def _group_size(trial: Trial) -> int:
    """How many numbers are normalised together."""
    shape = trial.value.shape
    if trial.layer_type in ("layernorm", "rmsnorm"):
        sizes = trial.argument(1, "normalized_shape")
        return int(torch.Size(sizes).numel()) if isinstance(sizes, tuple | list) else int(sizes)
    channels = shape[1] // trial.argument(1, "num_groups") if trial.layer_type == "groupnorm" else 1
    batch = shape[0] if trial.layer_type == "batchnorm" else 1
    return int(channels * batch * torch.Size(shape[2:]).numel())


def _not_chosen(trial: Trial) -> bool:
    if trial.layer_type == "where" and len(trial.args) == 3:
        condition, first, second = trial.args
        if trial.value is condition:
            return bool(torch.all(torch.as_tensor(first == second)))
        chosen = condition if trial.value is first else ~condition
        return not bool(chosen.any())
    if trial.layer_type == "maskedfill":
        mask = trial.argument(1, "mask")
        if trial.value is mask:
            return bool(torch.all(torch.as_tensor(trial.args[0] == trial.argument(2, "value"))))
        return trial.place == 0 and bool(mask.all())
    return False


def _dropped(trial: Trial) -> bool:
    return "dropout" in trial.layer_type and all(_is_zero(result) for result in trial.results)


def _equal_bounds(trial: Trial) -> bool:
    if trial.layer_type not in ("clamp", "clip") or trial.value is not trial.args[0]:
        return False
    least, most = trial.argument(1, "min"), trial.argument(2, "max")
    return least is not None and most is not None and bool(torch.as_tensor(least >= most).all())


_SUMS = frozenset("add sub rsub maximum minimum max min logaddexp baddbmm addmm".split())


def _absorbed(trial: Trial) -> bool:
    def is_huge(other: Any) -> bool:
        # `not <` rather than `>=`, so that NaN counts: it absorbs everything.
        if isinstance(other, Tensor):
            return other.is_floating_point() and other.numel() > 0 and bool((~(other.abs() < 1e30)).all())
        return isinstance(other, float) and not abs(other) < 1e30

    return trial.layer_type in _SUMS and any(map(is_huge, trial.others()))


def _only_zero(trial: Trial) -> bool:
    is_integer = not (trial.value.is_floating_point() or trial.value.is_complex() or trial.value.dtype == torch.bool)
    return is_integer and int(trial.value.max()) <= 0 and int(trial.value.min()) >= 0


def _discrete(trial: Trial) -> bool:
    return not any(result.is_floating_point() or result.is_complex() for result in trial.results)


EXEMPTIONS = (
    Exemption("nothing to change", "the value, or the result, has no elements", _nothing_to_change),
    Exemption("form only", "the function reads only shape, dtype and device of this argument", _form_only),
    Exemption("overwritten", "the function overwrites all of this argument without reading it", _overwritten),
    Exemption("statistics", "while training, running statistics are written and not read", _statistics),
    Exemption("zero factor", "another argument is zero everywhere, and so is its product with anything", _zero_factor),
    Exemption("all alike", "everything that could be looked up is the same, whatever the index", _all_alike),
    Exemption("one element", "normalised over a single element, any value gives the same result", _one_element),
    Exemption("not chosen", "the condition takes nothing from this argument, or both choices are equal", _not_chosen),
    Exemption("dropped", "dropout dropped all of the value", _dropped),
    Exemption("equal bounds", "the lower bound of the clamp is the upper bound", _equal_bounds),
    Exemption("absorbed", "another argument is infinite, or so large that adding to it changes nothing", _absorbed),
    Exemption("only zero", "the only index is zero, and no other index is known to be in range", _only_zero),
    Exemption("discrete", "the result is an integer or a boolean, which may be the same for many values", _discrete),
)
"""All rules; the first that holds is reported."""
