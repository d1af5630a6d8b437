"""Whether the engines record the same of published models: ``python -m tests.zoo.engines docs/zoo-engines.md``.

The static engine has to give what the eager one gives, to the bit; the compiled one too, within tolerance and but for
what it says to be out of its sight.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from fastrec import ActivationRecord, FastrecWarning, Recorder
from fastrec._errors import FastrecError
from fastrec.predicates import kind, module_type, op, structural
from tests.helpers.naive import same_bits, seeded, tensors_in
from tests.helpers.same_recordings import facts_of
from tests.zoo.language import language_models
from tests.zoo.measure import REFUSED
from tests.zoo.plain import plain_models, policies
from tests.zoo.run import rows_of_parts, work
from tests.zoo.vision import define_operators, timm_models, torchvision_models

Made = tuple[nn.Module, Any, dict[str, Any] | None]

EVERYTHING: dict[str, Any] = {
    "keep_op": kind("op") & ~structural(lambda ctx: ctx.site.count("/") > 1),  # what composites are made of left out
    "keep_module": kind("module_enter", "module_exit"),
}
SOME: list[dict[str, Any]] = [
    {"keep_op": op("layernorm", "linear", "gelu", "relu", "softmax", "conv2d", "lstm", "batchnorm")},
    {"keep_module": module_type(nn.Linear, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d)},
    {"keep_op": "add*"},
]
STATIC_PASSES = 4


def some_torchvision_models() -> Iterator[tuple[str, Any]]:
    """Every sixth, but for those that detect: they make large images of small ones, all of whose values do not fit."""
    return ((name, make) for name, make in islice(torchvision_models(), 0, None, 6) if "detection" not in name)


PARTS: dict[str, Callable[[], Iterator[tuple[str, Any]]]] = {
    "plain torch": plain_models,
    "Stable-Baselines3": policies,
    "transformers": language_models,
    "torchvision": some_torchvision_models,
    "timm": lambda: islice(timm_models(), 0, None, 8),
}


class EngineRow(msgspec.Struct):
    """What became of one model."""

    name: str
    records: int = 0
    static: str = ""
    compiled: str = ""
    verdict: str = ""  # of a model that could not be run

    @property
    def is_right(self) -> bool:
        """Whether nothing was recorded wrong."""
        verdicts = [self.verdict] if self.verdict else [self.static, self.compiled]
        return all(verdict.startswith(("identical", "refused", "not ")) for verdict in verdicts)


def compare(name: str, make: Callable[[], Made]) -> EngineRow:
    """Record a model with each engine."""
    torch.distributions.Distribution.set_default_validate_args(False)  # as dynamo does when it compiles one
    with warnings.catch_warnings(), torch.random.fork_rng(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            with seeded():
                model, args, kwargs = make()
            args = args if isinstance(args, list | tuple) else (args,)
            made = model.eval(), args, kwargs or {}
            expected = run(made, "eager", 1, EVERYTHING)[0]
        except REFUSED as error:
            return EngineRow(name, verdict=f"not run: {str(error).splitlines()[0]}")
        row = EngineRow(name, len(expected))
        row.static = _verdict(compare_static, made)
        row.compiled = _verdict(compare_compiled, made, expected)
    torch._dynamo.reset()
    return row


def _verdict(compare: Callable[..., str], *args: Any) -> str:
    try:
        return compare(*args)
    except FastrecError as error:
        return f"refused: {error}"
    except torch._dynamo.exc.TorchDynamoException as error:
        return f"not compiled by torch: {' '.join(str(error).splitlines()[:2])}"


def run(
    made: Made, engine: str, passes: int, options: dict[str, Any], *, popped: bool = False
) -> tuple[list[ActivationRecord], list[Tensor]]:
    """What an engine records of some passes of a copy of a model, taken pass by pass or at the end, and its outputs."""
    model, args, kwargs = copy.deepcopy(made)
    if engine == "compiled":
        torch._dynamo.reset()
        model = torch.compile(model, backend="aot_eager")
    taken: list[ActivationRecord] = []
    outputs: list[Tensor] = []
    with Recorder(model, engine=engine, **options) as rec:
        for index in range(passes):
            with seeded(index):
                outputs += [value.clone() for _, value in tensors_in(model(*args, **kwargs))]  # type: ignore[arg-type]
            if popped:
                taken += rec.pop()
    return [*taken, *rec.recording], outputs


def compare_static(made: Made) -> str:
    for options, popped in [(SOME[0], False), *((options, True) for options in SOME)]:
        (one, outputs), (other, others) = (
            run(made, engine, STATIC_PASSES, options, popped=popped) for engine in ("eager", "static")
        )
        if [facts_of(record) for record in one] != [facts_of(record) for record in other]:
            return f"wrong: another recording with {options}"
        pairs = [(mine.activation, theirs.activation) for mine, theirs in zip(one, other, strict=True)]
        if not all(same_bits(a, b) for a, b in [*pairs, *zip(outputs, others, strict=True)]):
            return f"wrong: other values with {options}"
    return "identical"


def compare_compiled(made: Made, expected: Any) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recording, outputs = run(made, "compiled", 1, EVERYTHING)
    told = any(issubclass(each.category, FastrecWarning) and "not recorded" in str(each.message) for each in caught)
    wanted = {facts["label"]: (facts, record) for record in expected for facts in [facts_of(record)]}
    found = [(facts_of(record), record) for record in recording]
    if any(facts != wanted.get(facts["label"], (None,))[0] for facts, _ in found):
        return "wrong: other contexts"
    labels = {facts["label"] for facts, _ in found}
    if [facts["label"] for facts, _ in found] != [label for label in wanted if label in labels]:
        return "wrong: another order"
    pairs = [
        (record.activation, wanted[facts["label"]][1].activation)
        for facts, record in found
        if not facts["layer_type"].startswith("empty")  # memory that nobody has written to
    ]
    if not all(_close(a, b) for a, b in [*pairs, *zip(outputs, run(made, "eager", 1, SOME[0])[1], strict=True)]):
        return "wrong: other values"
    missing = len(wanted) - len(found)
    if missing and not told:
        return f"wrong: {missing} of {len(wanted)} records missing, and nothing said"
    if not found:
        return "not compiled by torch, and told"
    return f"identical, but {missing} of {len(wanted)} that are named in a warning" if missing else "identical"


def _close(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)


def table(parts: dict[str, list[EngineRow]]) -> str:
    """The results as a page."""
    rows = [row for part in parts.values() for row in part]
    lines = [
        "# The engines on published models",
        "",
        f"What the static and the compiled engine record of {len(rows)} models with random weights, in evaluation mode "
        "on a CPU, compared with the eager engine: sites, labels, order, contexts and values. Static: "
        f"{STATIC_PASSES} passes with each of three selections, taken pass by pass, and one of them taken at the end, "
        "values equal to the bit. Compiled (`aot_eager`): all "
        "events of a pass, values within 1e-3 and 1e-4. What lies between two graphs, or what nobody uses, a compiled "
        "model can't show; a warning names it, and the table counts it. Written by `make test-zoo`.",
        "",
        f"Identical: static {sum(row.static.startswith('identical') for row in rows)}, "
        f"compiled {sum(row.compiled.startswith('identical') for row in rows)}.",
    ]
    for part, found in parts.items():
        lines += ["", f"## {part}", "", "| model | records | static | compiled |", "|---|--:|---|---|"]
        for row in found:
            static, compiled = (
                (verdict or row.verdict).partition(", so its records")[0].replace("|", "\\|")
                for verdict in (row.static, row.compiled)
            )
            lines.append(f"| {row.name} | {row.records or ''} | {static} | {compiled} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Run all parts and write the page."""
    define_operators()
    if arguments[0] == "--work":
        work(PARTS[arguments[1]](), Path(arguments[2]), compare, EngineRow)
        return
    folder = Path(arguments[1]) if len(arguments) > 1 else Path(tempfile.mkdtemp())
    found: dict[str, list[EngineRow]] = {}
    for part, rows in rows_of_parts("tests.zoo.engines", PARTS, folder, EngineRow):
        found[part] = rows
        Path(arguments[0]).write_text(table(found))
    wrong = [row.name for part in found.values() for row in part if not row.is_right]
    sys.exit(f"not recorded right: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
