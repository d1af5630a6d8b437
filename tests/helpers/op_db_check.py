"""A script: compare the op table with what torch's own samples of 700 ops do. Prints what disagrees."""

import collections
import json
import warnings
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_map

from fastrec.ops.composites import inner_layer_types
from fastrec.ops.facts import op_facts, openable, opened, reads_inplace_flag
from tests.helpers.op_calls import Seen, tensors

# `1 / x` is an operator, and `embedding` one lookup, by decision.
ONE_BY_DECISION = {"__rdiv__", "embedding"}

torch.set_num_threads(1)
warnings.simplefilter("ignore")
wrong: collections.Counter[str] = collections.Counter()
calls: collections.Counter[str] = collections.Counter()


def copied(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, value)


class Check(TorchFunctionMode):
    """Judges each call by what it does."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        facts, name = op_facts(func), getattr(func, "__name__", str(func))
        again = copied((args, kwargs))
        given = tensors((args, kwargs))
        versions, state = [t._version for t in given], torch.get_rng_state()
        out = func(*args, **kwargs)
        after = torch.get_rng_state()
        calls[name] += 1
        if facts is None:
            wrong[f"{name} returns a tensor"] += bool(tensors(out))
            return out
        if [t._version for t in given] != versions:
            wrong[f"{name} writes"] += not reads_inplace_flag(facts, args, kwargs)
        if openable(func):
            torch.set_rng_state(state)
            wrong[f"{name} fails when it is opened"] += 1
            with Seen() as seen:
                value = opened(func)(*again[0], **again[1])
            wrong[f"{name} fails when it is opened"] -= 1
            torch.set_rng_state(after)
            wrong[f"{name} differs when it is opened"] += not same(tensors(out), tensors(value))
            if facts.composite:
                wrong[f"{name} runs unforeseen ops"] += not set(seen.layer_types) <= inner_layer_types(func)
            elif name not in ONE_BY_DECISION:
                wrong[f"{name} is a composite"] += len(seen.layer_types) > 1
        return out


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    try:
        torch.testing.assert_close(some, others, rtol=0, atol=0, equal_nan=True)
    except AssertionError:
        return False
    return True


for op in op_db:
    forms = {op.op, op.method_variant, op.operator_variant, op.inplace_variant, op.inplace_operator_variant}
    forms |= {alias.op for alias in op.aliases}
    for dtype in {torch.float32, torch.complex64, torch.int64, torch.bool} & op.dtypes:
        for sample in [s for s, _ in zip(op.sample_inputs("cpu", dtype), range(60), strict=False)]:
            for form in forms - {None}:
                first, args, kwargs = copied((sample.input, sample.args, sample.kwargs))
                try:
                    with Check():
                        form(first, *args, **kwargs)
                except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, AssertionError):
                    calls["refused"] += 1  # a form, such as one in place, that doesn't take this sample

print(json.dumps({"functions": len(calls), "calls": calls.total(), "wrong": +wrong}))
