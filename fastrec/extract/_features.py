"""``fastrec.features``: a module that returns chosen values of a model, and runs the model no further than to the last.

    extractor = fastrec.features(backbone, {"low": "layer1", "high": "layer4.1/relu_2"})
    out = extractor(images)            # {"low": ..., "high": ...}, attached to autograd
    head(out["high"]).sum().backward()

It watches the model's calls with the parts of the eager engine, and only while its own call runs. So any model works
that a recorder can record, also one whose control flow depends on its input, and nothing stays on the model. The pass
ends by an exception that is raised where the last value appears.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastrec._errors import OptionError, RecordKeyError, did_you_mean
from fastrec._torch.dynamo import is_loaded
from fastrec.engines._protocol import BasicRun, Tap, WatchOptions
from fastrec.engines.eager.engine import eager_passes
from fastrec.engines.eager.module_calls import MODULE_CALLS
from fastrec.engines.eager.passes import EagerPasses
from fastrec.events.position import Position
from fastrec.events.sites import Site


def features(model: nn.Module, sites: Mapping[str, str]) -> Features:
    """A module that runs a model and returns some of its values, attached to autograd, as a dict.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> extractor = fastrec.features(model, {"hidden": "1", "raw": "0/linear"})
    >>> {name: value.shape for name, value in extractor(torch.ones(5, 4)).items()}
    {'hidden': torch.Size([5, 8]), 'raw': torch.Size([5, 8])}

    Arguments:
        model: a module, on any device; its parameters are the extractor's own, and train with it.
        sites: for each name in the result a module's address ("layer1", its output), a site as ``dry_run`` shows it
            ("layer4.1/relu_2"), or a leaf of a nested output ("lstm[0]").

    The pass ends where the last of the values appears, so later layers cost nothing and change nothing (the statistics
    of a batch norm behind it, for instance). Where a site fires several times in a pass, its first value is taken. A
    value is a copy, unless it is the one at which the pass ends. It is called with what the model takes.

    Within ``torch.compile`` the extractor runs as it is, not compiled. Under DDP, wrap the extractor, with
    ``find_unused_parameters=True`` where it ends before the last layer.

    Raises OptionError for something else than a dict of names; when called, RecordKeyError for a site that was not
    reached in the pass.
    """
    return Features(model, sites)


class Features(nn.Module):
    """See ``features``."""

    def __init__(self, model: nn.Module, sites: Mapping[str, str]) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise OptionError(f"features() got a {type(model).__name__} as its model; give a torch.nn.Module")
        names: Any = sites
        texts = [text for pair in names.items() for text in pair] if isinstance(names, Mapping) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise OptionError(f"features(model, {sites!r}): give a dict name -> site, such as {{'low': 'layer1'}}")
        self.model = model
        self.sites = dict(sites)
        self._passes = _ThreadPasses()
        self._passes_of_thread()  # so that a model that can't be watched is refused now

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the model up to the last of the values."""
        # Where dynamo is loaded somebody may have compiled this module, and then it would compile parts of the model
        # while they are watched. As a decorator it would load dynamo with this package.
        if is_loaded():
            values: dict[str, Tensor] = torch.compiler.disable(self._run)(*args, **kwargs)  # type: ignore[no-untyped-call]
            return values
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        listener, passes = self._passes_of_thread()
        listener.run = run = _Run(self.sites.values())
        MODULE_CALLS.add(passes.wrapper, passes.thread, passes.registry.classes())
        try:
            self.model(*args, **kwargs)
        finally:
            MODULE_CALLS.remove(passes.wrapper)
            listener.run = None
        if run.missing:
            raise RecordKeyError(self._message(next(iter(run.missing)), listener.seen))
        return {name: run.values[site] for name, site in self.sites.items()}

    def extra_repr(self) -> str:
        return f"sites={self.sites}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_passes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._passes = _ThreadPasses()

    def _passes_of_thread(self) -> tuple[_Listener, EagerPasses]:
        """What watches the model in this thread; made anew where the model was replaced."""
        local = self._passes
        if local.model is not self.model:
            sites = self.sites.values()
            watch = WatchOptions(
                ops=any("/" in site for site in sites),
                sources=any(site.startswith(":in") or site.endswith(":buffer") for site in sites),
            )
            listener = _Listener(frozenset(sites))
            local.listener, local.passes = listener, eager_passes({"": self.model}, listener, watch)
            local.model = self.model
        return local.listener, local.passes

    def _message(self, site: str, seen: Mapping[str, None]) -> str:
        leaves = [name for name in seen if name.startswith((f"{site}[", f"{site}."))]
        if leaves:
            return f"{site!r} has several leaves; give one of them, such as {leaves[0]!r}"
        same_op = [name for name in seen if name.rpartition("/")[2] == site.rpartition("/")[2]]
        names = same_op or [*seen, *(name for name, _ in self.model.named_modules() if name)]
        return f"nothing appeared at {site!r} in this pass; {did_you_mean(site, names)}"


class _ThreadPasses(threading.local):
    """What watches the model, for each thread."""

    model: nn.Module | None = None
    listener: _Listener
    passes: EagerPasses


class _Stop(BaseException):
    """Ends the pass. It is no Exception, so that no ``except Exception`` of the model swallows it."""


class _Run(BasicRun):
    """One pass: the values so far, and the sites that have none yet."""

    def __init__(self, sites: Any) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        self.missing = set(sites)


class _Listener:
    """Gives the engine a tap at each of the sites, and ends the pass when all have a value."""

    def __init__(self, sites: frozenset[str]) -> None:
        self.run: _Run | None = None
        self.seen: dict[str, None] = {}
        self._sites = sites
        self._thread = threading.get_ident()

    def tap(self, position: Position, site: Site) -> Tap[_Run] | None:
        """The tap of a site that is wanted."""
        self.seen[site.name] = None
        wanted = self._names(site) & self._sites
        return _Tap(wanted) if wanted else None

    def _names(self, site: Site) -> set[str]:
        """What a site may be called: a module's output also by each of the module's addresses."""
        if site.kind != "module_exit" or site.output_address:
            return {site.name}
        frame = site.frames[-1]
        return {site.name, frame.module_address, *frame.aliases} - {""}

    def may_keep(self, site: Site) -> bool:
        """Whether a site is wanted, or something of the nested value that appears there."""
        return any(name.startswith(site.name) for name in self._sites) or not self._names(site).isdisjoint(self._sites)

    def begin(self, entry: str) -> _Run | None:
        """A pass begins; those of other threads are not recorded."""
        if threading.get_ident() != self._thread:
            return None
        run, self.run = self.run, None
        return run

    def end(self, run: _Run, error: BaseException | None) -> bool:
        """A pass ended; True where it was ended here, or where the model swallowed that."""
        return isinstance(error, _Stop)


class _Tap:
    """Takes the first value of a site in each pass."""

    def __init__(self, sites: set[str]) -> None:
        self._sites = sites

    def __call__(self, run: _Run, value: Tensor) -> None:
        wanted = self._sites & run.missing
        if not wanted:
            return
        run.missing -= wanted
        # What comes after the last value can't write to it, and what comes after the others can.
        kept = value.clone() if run.missing else value
        run.values.update(dict.fromkeys(wanted, kept))
        if not run.missing:
            stop = _Stop()
            run.fail(stop)
            raise stop
