"""One pass that keeps no tensor: what a recorder would see, and what it would keep."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fastrec._dry_decisions import Decider, Outcome
from fastrec._dry_events import Event, Watch
from fastrec._dry_result import DryRun as DryRun
from fastrec._errors import FastrecWarning, OptionError
from fastrec._torch.state import random_state_restored, restored, seeded
from fastrec.engines import EagerEngine
from fastrec.engines._protocol import Region
from fastrec.session.inputs import NOT_GIVEN, args_of, check_inputs, roots_of
from fastrec.session.options import options_of


def dry_run(
    model: nn.Module | Mapping[str, nn.Module],
    input_args: Any = NOT_GIVEN,
    input_kwargs: Mapping[str, Any] | None = None,
    *,
    call: Callable[[], Any] | None = None,
    **recorder_options: Any,
) -> DryRun:
    """Run a model once and tell what happens in it, what predicates would keep, and how large that is.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> dry = fastrec.dry_run(model, torch.zeros(2, 4), keep_op="tanh")
    >>> [ctx.label for ctx in dry.kept], sum(dry.sizes)
    (['tanh_1'], 64)
    >>> dry.print_tree()
    :in[0] (input)  2x4 float32  32 B
    Sequential      2x2 float32  16 B
    ├─ 0: Linear    2x8 float32  64 B
    │  └─ linear    2x8 float32  64 B
    ├─ 1: Tanh      2x8 float32  64 B
    │  └─ tanh      2x8 float32  64 B  ● 64 B
    └─ 2: Linear    2x2 float32  16 B
       └─ linear    2x2 float32  16 B
    1 of 12 events kept: 64 B per pass, 62.5 KiB per 1,000 passes

    Arguments:
        model: a module, or a dict name -> module.
        input_args: one positional argument, or a tuple or list of them.
        input_kwargs: keyword arguments.
        call: a function without arguments that uses the model in any way, in place of inputs.
        recorder_options: the options of Recorder. Without ``keep_op`` and ``keep_module`` everything is shown and
            nothing kept; ``sink`` and ``retain`` change nothing here. Inputs and buffers are always shown, but can
            only be kept with ``include_source_events=True``.

    Returns a DryRun. The pass is the first one of its entry, and in no phase. Afterwards buffers, flags, gradients
    and random states are what they were; parameters and other attributes are as the call leaves them. What a
    predicate raises is shown at its event.
    """
    check_inputs(input_args, call)
    options = options_of(recorder_options)
    roots = roots_of(model)
    if call is None and len(roots) > 1:
        raise OptionError(
            f"there are several roots ({', '.join(map(repr, roots))}), and inputs are for one; "
            "run them with call=lambda: ..."
        )
    decider = Decider(options)
    events: list[Event] = []
    outcomes: list[Outcome] = []

    def tell(event: Event, value: Tensor) -> None:
        events.append(event)
        outcomes.append(decider.outcome(event, value))

    watch = Watch(options, tell)
    engine: Any = options.engine
    if isinstance(engine, str):
        engine = EagerEngine(ops=True, sources=True, parents=options.track_parents)
    with restored(roots.values()), random_state_restored(), seeded(options.random_seed), _quiet_about_fusing():
        engine.open(roots, watch)
        try:
            if call is None:
                next(iter(roots.values()))(*args_of(input_args), **(input_kwargs or {}))
            else:
                _run_region(engine, call)
        finally:
            engine.close()
    return DryRun(", ".join(type(root).__name__ for root in roots.values()), events, outcomes, decider)


@contextmanager
def _quiet_about_fusing() -> Iterator[None]:
    # Fused modules are opened so that their inside is seen; the output is dropped, so its last bits don't matter.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*without its fused kernel", FastrecWarning)
        yield


def _run_region(engine: Region, call: Callable[[], Any]) -> None:
    token = engine.enter_region("call")
    try:
        call()
    except BaseException as error:
        engine.leave_region(token, error)
        raise
    engine.leave_region(token, None)
