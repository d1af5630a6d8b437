"""Where another value of a parent may rightly leave the result as it is, rule by rule.

A rule is only asked once several random values have made no difference, and each looks at the very call: at its
function, at which argument the parent is, and at the values of the other arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor


class Trial(msgspec.Struct, frozen=True):
    """A call whose result does not depend on one of its parents.

    ``place`` is where the parent stands first: a position, or the name of a keyword. ``args`` and ``kwargs`` hold
    tensors; ``value`` is the parent's; ``results`` what the call returned.
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
        """All arguments but the parent, those in lists one by one."""
        for argument in (*self.args, *self.kwargs.values()):
            for item in argument if isinstance(argument, tuple | list) else (argument,):
                if item is not self.value:
                    yield item


class Exemption(msgspec.Struct, frozen=True):
    """A rule: its name, why it is right, and where it holds."""

    name: str
    why: str
    holds: Callable[[Trial], bool]


def exemption(trial: Trial) -> Exemption | None:
    """The first rule that holds, None where the result should have changed."""
    return next((rule for rule in EXEMPTIONS if rule.holds(trial)), None)


def _nothing_to_change(trial: Trial) -> bool:
    return trial.value.numel() == 0 or all(result.numel() == 0 for result in trial.results)


_FORM_ONLY = frozenset(
    "zeroslike oneslike emptylike fulllike randlike randnlike randintlike newzeros newones newfull newempty newtensor "
    "emptystrided resizeas".split()
)

_FORM_OF_OTHER = frozenset("expandas viewas reshapeas typeas to".split())


def _form_only(trial: Trial) -> bool:
    if trial.layer_type in _FORM_OF_OTHER:
        return trial.place != 0
    return trial.layer_type in _FORM_ONLY


_OVERWRITE = frozenset(
    "copy fill zero normal uniform bernoulli random exponential geometric lognormal cauchy setitem indexcopy indexfill "
    "indexput maskedfill maskedscatter scatter truncnormal constant ones zeros eye set logicalnot".split()
)


def _overwritten(trial: Trial) -> bool:
    if trial.place == "out":
        return True
    return trial.inplace and trial.place == 0 and trial.layer_type in _OVERWRITE


Places = tuple[int | str, ...]

_ALL: Places = ("*",)

_INPUT: Places = (0, "input")

_BOTH: Places = (0, "input", 1, "weight")


def _factors() -> Iterator[tuple[str, Places, Places]]:
    """By function: the arguments that then can't move the result, and those of which one must be zero for it."""
    for name in "mul matmul mm bmm mv dot outer ger kron einsum tensordot cross inner vecdot".split():
        yield name, _ALL, _ALL
    for name in "linear bilinear conv1d conv2d conv3d convtranspose1d convtranspose2d convtranspose3d".split():
        yield name, _BOTH, _BOTH
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


_FACTORS = {name: (moved, factors) for name, moved, factors in _factors()}


def _zero_factor(trial: Trial) -> bool:
    if trial.layer_type == "batchnorm" and trial.place in (2, "running_var"):
        centred = trial.args[0] - trial.argument(1, "running_mean").reshape(-1, *(1,) * (trial.args[0].dim() - 2))
        if _is_zero(centred):
            return True
    moved, factors = _FACTORS.get(trial.layer_type, ((), ()))
    if moved != _ALL and trial.place not in moved:
        return False
    if factors == _ALL:
        return any(map(_is_zero, trial.others()))
    given: dict[int | str, Any] = dict(enumerate(trial.args))
    given.update(trial.kwargs.items())
    return any(_is_zero(given[name]) for name in factors if name in given and given[name] is not trial.value)


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
        key = trial.argument(1, "key")
        query = trial.argument(0, "query")
        causal = bool(trial.argument(5, "is_causal", False))
        return trial.place != 2 and trial.place != "value" and (key.shape[-2] == 1 or causal and query.shape[-2] == 1)
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


def _statistics(trial: Trial) -> bool:
    if trial.layer_type == "batchnorm":
        training = bool(trial.argument(5, "training", False))
    elif trial.layer_type == "instancenorm":
        training = bool(trial.argument(5, "use_input_stats", True))
    else:
        return False
    return training and trial.place in (1, 2, "running_mean", "running_var")


def _dropped(trial: Trial) -> bool:
    return "dropout" in trial.layer_type and all(_is_zero(result) for result in trial.results)


_SUMS = frozenset("add sub rsub maximum minimum max min logaddexp baddbmm addmm".split())


def _absorbed(trial: Trial) -> bool:
    def is_huge(other: Any) -> bool:
        if isinstance(other, Tensor):
            return other.is_floating_point() and other.numel() > 0 and bool((~(other.abs() < 1e30)).all())
        return isinstance(other, float) and not abs(other) < 1e30

    return trial.layer_type in _SUMS and any(map(is_huge, trial.others()))


def _discrete(trial: Trial) -> bool:
    return not any(result.is_floating_point() or result.is_complex() for result in trial.results)


def _equal_bounds(trial: Trial) -> bool:
    if trial.layer_type not in ("clamp", "clip") or trial.value is not trial.args[0]:
        return False
    least, most = trial.argument(1, "min"), trial.argument(2, "max")
    return least is not None and most is not None and bool(torch.as_tensor(least >= most).all())


def _only_zero(trial: Trial) -> bool:
    whole = not (trial.value.is_floating_point() or trial.value.is_complex() or trial.value.dtype == torch.bool)
    return whole and int(trial.value.max()) <= 0 and int(trial.value.min()) >= 0


EXEMPTIONS = (
    Exemption("nothing to change", "the value, or the result, has no elements", _nothing_to_change),
    Exemption("form only", "the function reads only shape, dtype and device of this argument", _form_only),
    Exemption("overwritten", "the function writes over all of this argument before anybody reads it", _overwritten),
    Exemption("statistics", "while training, running statistics are written and not read", _statistics),
    Exemption("zero factor", "another argument is zero everywhere, and so is its product with anything", _zero_factor),
    Exemption("all alike", "all that could be looked up is the same, so it does not matter which", _all_alike),
    Exemption("one element", "what is normalised over a single element is the same whatever it is", _one_element),
    Exemption("not chosen", "the condition takes nothing from this argument, or both choices are equal", _not_chosen),
    Exemption("dropped", "all of the value was dropped at random", _dropped),
    Exemption("equal bounds", "the least that it may be is the most that it may be", _equal_bounds),
    Exemption("absorbed", "another argument is infinite, or so large that adding to it changes nothing", _absorbed),
    Exemption("only zero", "the only index is zero, and no other is known to be in range", _only_zero),
    Exemption("discrete", "the result is an integer or a boolean, which may be the same for many values", _discrete),
)
"""All rules; the first that holds is reported."""
