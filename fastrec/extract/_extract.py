"""``fastrec.extract``: values of a model over a whole data set, one row for each sample.

    features = fastrec.extract(model, data, keep_module=["layer3", "avgpool"], to="features.h5")
    features.stack("avgpool", by="sample")              # [samples, ...], in the order of the data set
    features.rows("avgpool", by="sample").sample_id     # the id of each row

Each batch is a pass of a recorder, logged with the ids of its samples. So what a killed process left behind says itself
which samples are done, and the next call goes on behind the last of them: passes reach the file whole and in order.

Two samples are run before, to learn what is kept: whether each value has a row for each sample, and at which site the
last of them appears, where passes then end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from itertools import chain
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from fastrec._errors import (
    BrokenPromiseError,
    OptionError,
    RecordingExistsError,
    RecordingNotFoundError,
    RecordKeyError,
)
from fastrec._optional import require
from fastrec.engines import is_compiled
from fastrec.events.capture import CaptureSpec, check_device
from fastrec.extract._batches import Batch, DataBatches, DataOptions, batches_of, to_device
from fastrec.predicates import structural
from fastrec.recording._recording import Recording
from fastrec.session.recorder import Recorder
from fastrec.sinks import HDF5Sink
from fastrec.sinks.hdf5.paths import Paths, is_folder, is_in_progress

N_PROBED = 2
"""How many samples are run before: not one, for models that squeeze their values."""

CHECK_EVERY = 256
"""A pass that ends early is compared with a whole one after so many batches."""


def extract(  # noqa: PLR0913
    model: nn.Module,
    data: Any,
    *,
    keep_module: Any = None,
    keep_op: Any = None,
    to: str | os.PathLike[str] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    sample_ids: str | Callable[[Any], Sequence[Any]] | Sequence[Any] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    resume: bool = True,
    stop_early: bool = True,
    progress: bool | None = None,
) -> Recording:
    """Run a model over a data set and keep chosen values, with the id of each sample; a killed run can be resumed.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> features = fastrec.extract(model, torch.randn(100, 4), keep_module="1", to="features.h5")
    >>> features.stack("1", by="sample").shape
    torch.Size([100, 8])
    >>> features.rows("1", by="sample").sample_id[:3]
    [0, 1, 2]

    Arguments:
        model: a module. It runs in eval mode, without gradients, and is left in the mode and where it was.
        data: a DataLoader, a data set of torch or of ``datasets``, a tensor [samples, ...], an iterable of batches, or
            the path of a folder of images. It has to give the same samples in the same order each time. Of a batch that
            is a tuple or list the model gets the first element, and of a dict what its ``forward`` takes.
        keep_module, keep_op: what to keep, as for Recorder.
        to: where to write: a path that ends in .h5 or .hdf5, or a folder ("features/"); by default RAM.
        transform: a function tensor -> tensor that each kept value goes through, such as pooling; its result is kept in
            place of the value.
        dtype: a floating dtype to store floating values in, such as torch.float16.
        device: where to run; the model is moved there meanwhile. By default where the model is.
        autocast: a dtype for mixed precision, such as torch.bfloat16.
        sample_ids: the ids, strings or whole numbers: a list in the order of the data, the name of a column of the
            batches, or a function batch -> ids. By default the number of the sample, or the path of an image.
        inputs: a function from a batch to what the model takes: one value, a tuple, or a dict of keywords.
        preprocess: for a folder of images, a function from a PIL image to a tensor.
        collate, batch_size, num_workers: for a data set, those of torch's DataLoader.
        resume: go on where an earlier call with this path ended, by itself or killed; without it, an error where there
            is something.
        stop_early: end each pass at the last kept site. For a model that runs the same modules for each batch; where a
            comparison with a whole pass, made every 256 batches, shows that it doesn't, BrokenPromiseError.
        progress: show a bar with the rate and the time left (the extra ``progress``); by default where it is installed.

    Returns the Recording, one pass per batch. Raises RecordKeyError where nothing is kept, OptionError where a value
    has not one row for each sample, or where what lies at ``to`` was made with other options.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"extract() got a {type(model).__name__} as its model; give a torch.nn.Module")
    batches = batches_of(
        data,
        model,
        DataOptions(
            batch_size=batch_size,
            num_workers=num_workers,
            collate=collate,
            preprocess=preprocess,
            inputs=inputs,
            sample_ids=sample_ids,
        ),
    )
    # A dtype may be given by its name.
    capture = CaptureSpec(dtype=dtype, transform=transform, save_raw=transform is None)  # type: ignore[arg-type]
    keep = {"keep_op": keep_op, "keep_module": keep_module, "capture": capture}
    earlier = _earlier(to, batches, resume=resume)
    call = _Call(model, _device(model, device), autocast)
    with call.prepared():
        todo = batches.after(len(earlier.ids))
        first = next(todo, None)
        if first is None and not earlier.ids:
            raise OptionError("extract() got data without samples")
        if first is not None:
            beginning = first.beginning(N_PROBED)
            probe = call.record(beginning, keep)
            last_site = _last_site(probe, beginning)
            earlier.check_like(probe)
            halt = structural(_SiteIs(last_site)) if last_site and stop_early and not is_compiled(model) else None
            rec = Recorder(model, **keep, sink=_sink(to), halt=halt)
            with _bar(batches.n_samples, len(earlier.ids), progress) as advance, rec:
                for number, batch in enumerate(chain([first], todo), 1):
                    if halt is not None and number % CHECK_EVERY == 0:
                        with rec.pause():
                            _compare(probe, call.record(batch, keep))
                    call.log(rec, batch)
                    advance(len(batch.sample_ids))
    recording = rec.recording if to is None else _load(to)
    _Earlier.of(recording).check_complete(batches.n_samples)
    return recording


class _Call(msgspec.Struct, frozen=True):
    """How the model is called: where, and in which precision."""

    model: nn.Module
    device: torch.device
    autocast: torch.dtype | None

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The model in eval mode and on the device, and afterwards as it was."""
        modes = {module: module.training for module in self.model.modules()}
        parameter = next(self.model.parameters(), None)
        home = None if parameter is None else parameter.device
        moves = home is not None and home != self.device
        try:
            self.model.eval()
            if moves:
                self.model.to(self.device)
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            if moves:
                self.model.to(home)

    def log(self, rec: Recorder, batch: Batch) -> None:
        """Run a batch under a recorder."""
        with torch.no_grad(), self._precision():
            rec.log(
                to_device(batch.args, self.device), to_device(batch.kwargs, self.device), sample_id=batch.sample_ids
            )

    def record(self, batch: Batch, keep: Mapping[str, Any]) -> Recording:
        """Run a batch as a whole, and keep its values in RAM."""
        with Recorder(self.model, **keep) as rec:
            self.log(rec, batch)
        return rec.recording

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, dtype=self.autocast)


class _SiteIs(msgspec.Struct, frozen=True):
    """Whether an event is at a site."""

    site: str

    def __call__(self, ctx: Any) -> bool:
        return bool(ctx.site == self.site)


class _Earlier(msgspec.Struct, frozen=True):
    """What lies where features are written: which samples are done, and with which options."""

    ids: list[Any] = []
    header: Mapping[str, Any] = {}
    dtypes: frozenset[torch.dtype | None] = frozenset()

    @classmethod
    def of(cls, recording: Recording) -> _Earlier:
        """What a recording holds; OptionError where it was not made by ``extract``."""
        source = recording._source
        indices = source.passes()["pass_index"].tolist()
        ids: list[Any] = [source.sample_id(index) for index in indices]
        if source.n_passes() != len(indices) or not all(isinstance(of_batch, tuple) for of_batch in ids):
            raise OptionError(
                "some passes of this recording kept nothing, or have no ids for their samples, so its rows are not "
                "those of a data set; extract() takes predicates that keep the same of each batch (not every, first or "
                "phase), and only goes on with what it wrote itself"
            )
        catalog = source.catalog
        header = catalog.origins[0].header if catalog.origins else catalog.header
        dtypes = frozenset(spec.dtype for spec in catalog.specs.items)
        return cls([sample_id for of_batch in ids for sample_id in of_batch], header, dtypes)

    def check_like(self, probe: Recording) -> None:
        """Raise OptionError where a batch would be kept in another way than the earlier ones."""
        if not self.ids:
            return
        other = _Earlier.of(probe)
        for name in ("keep_op", "keep_module", "roots"):
            if self.header.get(name) != other.header.get(name):
                raise OptionError(
                    f"what is there was extracted with {name}={self.header.get(name)}, and this call has "
                    f"{other.header.get(name)}; give another path"
                )
        if self.dtypes != other.dtypes:
            raise OptionError(
                f"what is there was stored as {_dtypes(self.dtypes)}, and this call stores "
                f"{_dtypes(other.dtypes)}; give another path"
            )

    def check_complete(self, n_samples: int | None) -> None:
        """Raise BrokenPromiseError where there are more or fewer samples than the data has."""
        if n_samples is not None and len(self.ids) != n_samples:
            raise BrokenPromiseError(
                f"{len(self.ids)} samples were extracted, and the data has {n_samples}: it gives others each time, or "
                "what was extracted before is of other data; give another path"
            )


def _earlier(to: str | os.PathLike[str] | None, batches: DataBatches, *, resume: bool) -> _Earlier:
    """What earlier calls left at a path; nothing where there is nothing, or nothing that was flushed."""
    if to is None:
        return _Earlier()
    try:
        earlier = _Earlier.of(_load(to))
    except RecordingNotFoundError:
        return _Earlier()
    if not resume:
        raise RecordingExistsError(f"{str(to)!r} exists; remove it, give another path, or leave resume=False out")
    batches.check_beginning(earlier.ids)
    if not is_folder(os.fspath(to)):
        _finish(os.fspath(to))
    return earlier


def _finish(path: str) -> None:
    """Finish the file that a killed call left, so that other tools find a file under the path at the end."""
    from fastrec.sinks.hdf5.recover import RecoverOptions, recover_files

    if any(map(is_in_progress, Paths(path).files())):
        recover_files(path, None, RecoverOptions())


def _load(path: str | os.PathLike[str]) -> Recording:
    from fastrec.sinks.hdf5.folder import open_any  # loads h5py, which features in RAM don't need

    # Not by fastrec.load, which warns about files of killed processes that hold nothing yet: where one is lost that
    # held something, the ids of the others tell.
    return Recording(open_any(path))


def _dtypes(dtypes: frozenset[torch.dtype | None]) -> str:
    return ", ".join(sorted("the values' own dtype" if dtype is None else str(dtype) for dtype in dtypes))


def _sink(to: str | os.PathLike[str] | None) -> Any:
    if to is None:
        return None
    return HDF5Sink(to) if is_folder(os.fspath(to)) else HDF5Sink(to, append=True)


def _device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    parameter = next(model.parameters(), None)
    if device is None:
        return torch.device("cpu") if parameter is None else parameter.device
    check_device(CaptureSpec(device=device))
    return torch.device(device)


def _last_site(probe: Recording, batch: Batch) -> str | None:
    """The site at which the last kept value of a pass appears, None where one pass has several of them.

    Raises RecordKeyError where nothing is kept, OptionError where a value has not one row for each sample.
    """
    if not len(probe):
        raise RecordKeyError("nothing that the predicates select appeared in the first batch; see fastrec.dry_run(...)")
    size = len(batch.sample_ids)
    for kept in probe:
        value = kept.activation if kept.transformed_activation is None else kept.transformed_activation
        if value is None or value.shape[:1] != (size,):
            shape = None if value is None else tuple(value.shape)
            raise OptionError(
                f"the value at {kept.ctx.site!r} is of shape {shape}, and the batch has {size} samples, so it has not "
                "one row for each; leave it out, or give a transform= that makes it [samples, ...]"
            )
    site = probe[-1].ctx.site
    return site if len(probe[f"site:{site}"]) == 1 else None


def _compare(probe: Recording, whole: Recording) -> None:
    sites, others = ([kept.ctx.site for kept in recording] for recording in (probe, whole))
    if sites != others:
        raise BrokenPromiseError(
            f"the first batch kept values at {sites}, and a later one at {others}, so a pass can't end at the last of "
            "the first; give stop_early=False and another path"
        )


@contextmanager
def _bar(total: int | None, n_done: int, progress: bool | None) -> Iterator[Callable[[int], Any]]:
    """A function that is told how many more samples are done."""
    if progress is False or (progress is None and find_spec("tqdm") is None):
        yield lambda count: None
        return
    tqdm = require("tqdm", extra="progress", what="extract(progress=True)").tqdm
    with tqdm(total=total, initial=n_done, unit=" samples", desc="extract", dynamic_ncols=True) as bar:
        yield bar.update
