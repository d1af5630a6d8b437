"""What was recorded, to be read: the same from RAM and from a file.

``Recording`` is the public face. It holds a ``View`` (which records) and ``Steps`` (which marked steps), both worked
out from a ``Source`` when they are first needed; a selection is another recording over the same source. The work is
done in the files beside this one: keys in ``_view``, tensors in ``_arrays``, rows and batches in ``_rows``, steps and
episodes in ``_steps``, containers of other libraries in ``_aligned``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from torch import Tensor

from fastrec._errors import OptionError, RecordKeyError, did_you_mean
from fastrec.events.context import PredicateFailure
from fastrec.events.process import Process
from fastrec.events.sites import Interned
from fastrec.predicates._addresses import AddressGlobs, nearest
from fastrec.predicates._globs import Globs
from fastrec.recording._aligned import align, to_tensordict, to_xarray, views_of_keys
from fastrec.recording._arrays import frame_of, numpy_of, split_by_pass, stack_records
from fastrec.recording._describe import describe, describe_options
from fastrec.recording._html import recording_html
from fastrec.recording._labels import LABELS
from fastrec.recording._part import PartSource
from fastrec.recording._processes import ProcessChoice, Ranks, of_processes, of_ranks
from fastrec.recording._records import ActivationRecord as ActivationRecord
from fastrec.recording._records import Records, SiteFacts, format_count, sites_of, summary_of
from fastrec.recording._rows import Batches, BatchOptions, Beside, By, Rows, RowsDataset, check_same_passes
from fastrec.recording._source import Array, Integers, Part, PhaseSteps, Source
from fastrec.recording._step_axis import stack_by_step
from fastrec.recording._steps import Autoreset, Episode, Firings, Steps, episodes_of, steps_of
from fastrec.recording._view import Mask, View, keys_of, metas_of_key
from fastrec.report.page import write_runs
from fastrec.report.run import RunStatistics

if TYPE_CHECKING:
    import pandas
    import tensordict
    import xarray

StackBy = Literal["pass", "step", "sample"] | None
"""What a row of a stack is; None: a record."""

Numbers = int | slice | range | Iterable[int]
"""Which passes or steps: one number, a slice or range of them, or any collection."""


class Recording:
    """What was recorded up to a moment: records in order of (pass, event), read one by one or as tensors.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> with fastrec.Recorder(model, keep_op="tanh") as rec:
    ...     for _ in range(3):
    ...         out = model(torch.ones(5, 4))
    >>> recording = rec.recording
    >>> recording
    <Recording: 3 records of 1 site in 3 passes>
    >>> recording.stack("1/tanh").shape
    torch.Size([3, 5, 8])
    >>> [record.ctx.pass_index for record in recording["tanh_1"]]
    [0, 1, 2]

    A key is a module's address ("features.3", its output), a site ("features.3/relu") or a label ("relu_2"). Where it
    means different records in two of these, write "module:...", "site:..." or "label:...". ``recording["a"]`` may be a
    sample id that ``rec.log`` was given, too: all records of its passes.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @cached_property
    def _view(self) -> View:
        return View(self._source)

    @cached_property
    def _steps(self) -> Steps:
        return steps_of(self._source.steps(), self._source.catalog)

    @classmethod
    def _of_view(cls, view: View, steps: Steps) -> Recording:
        """A selection, which has no source of its own: its view and steps can't be worked out again."""
        recording = Recording.__new__(Recording)
        recording._view, recording._steps = view, steps
        return recording

    def __getstate__(self) -> dict[str, Any]:
        # A pickle leaves out what can be worked out of the source again.
        names = ("_source",) if "_source" in self.__dict__ else ("_view", "_steps")
        return {name: self.__dict__[name] for name in names}

    @property
    def records(self) -> Records:
        """All records, as a sequence that makes each when it is asked for."""
        return Records(self._view)

    @property
    def n_records(self) -> int:
        """How many records there are."""
        return len(self._view)

    @property
    def n_passes(self) -> int:
        """How many passes ended, including those without records; in a selection, only those with records."""
        return self._view.n_passes

    def __len__(self) -> int:
        return len(self._view)

    def __iter__(self) -> Iterator[ActivationRecord]:
        return iter(self.records)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return any(record is key for record in self)
        try:
            metas_of_key(self._view, key)
        except RecordKeyError:
            return False
        return True

    @overload
    def __getitem__(self, key: int) -> ActivationRecord: ...
    @overload
    def __getitem__(self, key: slice | str) -> list[ActivationRecord]: ...
    def __getitem__(self, key: int | slice | str) -> ActivationRecord | list[ActivationRecord]:
        if isinstance(key, str):
            try:
                return list(Records(self._of_key(key)))
            except RecordKeyError:
                passes = self._view.passes["pass_index"]
                ids = map(self._view.source.sample_id, passes.tolist())
                of_sample = np.array([key in i if isinstance(i, tuple) else key == i for i in ids], np.bool_)
                if not of_sample.any():
                    raise
                return list(Records(self._view.of_passes(of_sample)))
        if isinstance(key, int | np.integer | slice):
            return self.records[key]
        raise RecordKeyError(f"recording[{key!r}]: give a number, a slice, a module's address, a site or a label")

    def last(self, key: str) -> ActivationRecord:
        """The newest record of a key."""
        return Records(self._of_key(key))[-1]

    def select(  # noqa: PLR0913
        self,
        *,
        phase: str | Iterable[str] | None = None,
        entry: str | Iterable[str] | None = None,
        passes: Numbers | None = None,
        steps: Numbers | None = None,
        batch: int | None = None,
        grad: bool | None = None,
        rank: int | Iterable[int] | None = None,
        worker: int | Iterable[int] | None = None,
        role: str | Iterable[str] | None = None,
    ) -> Recording:
        """A part of the recording, which is a recording too; nothing is copied.

        >>> import torch, fastrec
        >>> model = torch.nn.Linear(4, 2)
        >>> with fastrec.Recorder(model, keep_op="linear") as rec:
        ...     for size in (8, 1, 8):
        ...         out = model(torch.ones(size, 4))
        >>> rec.recording.select(batch=8).stack("linear_1").shape
        torch.Size([2, 8, 2])

        Arguments:
            phase, entry: a name or glob, or several. In globs of entries ``*`` stays within one level, as in those of
                modules.
            passes: pass indices: a number, a slice, a range or a set; negative numbers count from the end.
            steps: the numbers of steps within their phases; passes of phases without steps are left out.
            batch: the size of the first dimension of a value; steps without such a value are left out.
            grad: whether gradients were on when the pass began.
            rank, worker, role: of the process, where several recorded: numbers, or for the role names or globs.
        """
        view, table = self._view, self._steps
        if not (rank is None and worker is None and role is None):
            view, table = of_processes(view, table, ProcessChoice(rank, worker, role))
        if phase is not None:
            view, table = _of_phases(view, table, phase)
        if entry is not None:
            view = view.of_passes(_names_mask("entry", entry, view.catalog.entries, view.passes["entry"]))
        if passes is not None:
            view, table = _of_pass_numbers(view, table, passes)
        if steps is not None:
            view, table = _of_step_numbers(view, table, steps)
        if grad is not None:
            if not isinstance(grad, bool):
                raise OptionError(f"select(grad={grad!r}): give True or False")
            view = view.of_passes(view.passes["grad"] == grad)
        if batch is not None:
            view, table = _of_batch_size(view, table, batch)
        return self._of_view(view, table)

    @property
    def ranks(self) -> Mapping[int, Recording]:
        """What each rank recorded, all its attempts together; empty where only one process recorded.

        Recordings that were merged without ranks are numbered in their order. ``select(worker=, role=)`` reaches
        processes of a folder that have none.
        """
        return Ranks(self._view.catalog.origins, lambda rank: self._of_view(*of_ranks(self._view, self._steps, rank)))

    @property
    def processes(self) -> list[Process]:
        """The processes that recorded, in the order of their passes; empty where only one process recorded."""
        return [origin.process for origin in self._view.catalog.origins]

    @overload
    def stack(
        self,
        key: str,
        by: StackBy = None,
        part: Part | None = None,
        *,
        fill: float | None = None,
        firings: Literal["last"] | None = None,
    ) -> Tensor: ...
    @overload
    def stack(
        self,
        key: list[str] | tuple[str, ...],
        by: StackBy = None,
        part: Part | None = None,
        *,
        fill: float | None = None,
        firings: Literal["last"] | None = None,
    ) -> dict[str, Tensor]: ...
    def stack(
        self,
        key: str | list[str] | tuple[str, ...],
        by: StackBy = None,
        part: Part | None = None,
        *,
        fill: float | None = None,
        firings: Literal["last"] | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """The values of a key as one tensor [records, ...], in order of (pass, event); of a list of keys, one for each.

        >>> import torch, fastrec
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
        >>> recording = fastrec.record(model, torch.ones(2, 4), keep_op="relu")
        >>> recording.stack("1/relu").shape, recording.stack("1/relu", by="pass").shape
        (torch.Size([1, 2, 4]), torch.Size([1, 1, 2, 4]))

        Arguments:
            key: a module's address, a site or a label; or a list of them, in which globs stand for the sites that they
                match (``["h.*"]``), for a dict of tensors.
            by: "pass" gives [passes, firings, ...], of the passes in which it fired. "step" gives [steps, ...], a row
                for each marked step of the only phase that has some; where several processes recorded, [steps,
                processes, ...], in the order of ``processes``, each rank once. "sample" gives [samples, ...], the first
                dimensions of the values one after the other, which may differ in size.
            part: "activation", "transformed_activation" or "gradient"; by default the activation, or the transformed
                one where the raw value was not kept.
            fill: with ``by="step"``, the number that stands in the rows of steps in which the key did not fire, or that
                one of several processes did not mark; without it they are an error.
            firings: with ``by="step"``, "last" takes the last of several firings in a step; without it they are an
                error.

        Where the records lie side by side in memory, the result is a view of that memory. Values kept with
        ``keep_grad`` stay attached to autograd. Raises RaggedError where shapes, dtypes, leaves or sites differ.
        """
        if by not in (None, "pass", "step", "sample"):
            raise OptionError(
                f"stack(by={by!r}): give by='pass', by='step' or by='sample', or leave it out for one row per record"
            )
        if not isinstance(key, str):
            keys = keys_of(self._view, _checked_keys("stack", key))
            return {name: self.stack(name, by, part, fill=fill, firings=firings) for name in keys}
        options = Firings.of("stack", fill, firings)
        if by != "step" and options != Firings():
            raise OptionError("stack(fill=, firings=) say what stands in the row of a step; give by='step' with them")
        view = self._of_key(key)
        if by == "step":
            return stack_by_step(view, self._steps, key, part, options)
        if by == "sample":
            return Rows(view, key, "sample", part)[:]
        values = stack_records(view, key, part)
        return split_by_pass(view, values, key) if by == "pass" else values

    def to_numpy(
        self,
        key: str,
        by: StackBy = None,
        *,
        fill: float | None = None,
        firings: Literal["last"] | None = None,
    ) -> Array:
        """``stack`` as a numpy array; bfloat16 and float8, which numpy lacks, become float32."""
        return numpy_of(self.stack(key, by, fill=fill, firings=firings))

    def rows(self, key: str, by: By = None, part: Part | None = None) -> Rows:
        """The values of a key as an array of rows that is read where it is indexed.

        >>> import torch, fastrec
        >>> model = torch.nn.Linear(4, 2)
        >>> with fastrec.Recorder(model, keep_op="linear") as rec:
        ...     for size in (8, 8, 5):
        ...         out = model(torch.ones(size, 4))
        >>> rows = rec.recording.rows("linear_1", by="sample")
        >>> rows, rows[10:20].shape
        (<Rows: 21x2 float32>, torch.Size([10, 2]))

        Arguments:
            key: a module's address, a site or a label.
            by: by default a row is the value of one record, and all values have the same shape. With "sample" each
                value gives as many rows as its first dimension has: [samples of all batches, ...].
            part: as in ``stack``.

        ``rows.step``, ``rows.env``, ``rows.episode``, ``rows.sample_id`` and ``rows.column("reward")`` tell what
        each row belongs to.
        """
        if not isinstance(key, str):
            raise RecordKeyError(f"rows({key!r}): give a module's address, a site or a label")
        return Rows(self._of_key(key), key, by, part, self._steps)

    def iter_batches(self, keys: str | Iterable[str], batch_size: int, *, by: By = None, **options: Any) -> Batches:
        """Batches of rows: tensors of one key, or dicts of several whose rows come from the same passes.

        >>> import torch, fastrec
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
        >>> with fastrec.Recorder(model, keep_op=True) as rec:
        ...     for _ in range(10):
        ...         out = model(torch.ones(8, 4))
        >>> batches = rec.recording.iter_batches(["0/linear", "1/relu"], 32, by="sample", shuffle=True)
        >>> [batch["1/relu"].shape[0] for batch in batches]
        [32, 32, 16]

        Arguments:
            keys: a key, or several; among several also what stands beside their rows: step columns by name
                ("reward", "label"), "sample_id" (a list), and the numbers "row", "pass_index", "step", "env",
                "episode" and "rank" (-1 where there is none).
            batch_size: rows in a batch; the last one may have fewer.
            by: what a row is, as in ``rows``.
            shuffle: read stretches of the file in random order, 32 at a time, and shuffle the rows of those in memory.
            seed: gives the same order each time, and another one for each ``set_epoch``; by default a seed is drawn
                from torch's generator for each iteration.
            drop_last: leave out a last batch that is not full.
            buffer_bytes: how much is read at a time (64 MiB); batches take about twice that in memory.
            shard: (rank, world size): read only this rank's share.

        Returns a ``torch.utils.data.IterableDataset``, to be given to a DataLoader with ``batch_size=None``.
        Raises RaggedError where rows differ in shape, or the keys did not fire in the same passes.
        """
        return Batches(self._rows_of(keys, by), _batch_options(batch_size=batch_size, **options))

    def to_dataset(self, keys: str | Iterable[str], by: By = None) -> RowsDataset:
        """A ``torch.utils.data.Dataset`` of rows by number: tensors of one key, or dicts of several.

        It is for samplers that draw rows freely; ``iter_batches`` is faster, because it reads a file in long stretches.
        """
        return RowsDataset(self._rows_of(keys, by))

    def to_xarray(
        self,
        keys: str | Iterable[str] | None = None,
        by: Literal["step"] | None = None,
        *,
        fill: float | None = None,
        firings: Literal["last"] | None = None,
    ) -> xarray.Dataset:
        """Values side by side in an xarray data set; needs the extra ``xarray``.

        Arguments:
            keys: a key or several; by default all sites.
            by: by default the first dimension is "record", with the coordinates ``pass_index``, ``step`` (-1 where
                there is none) and ``phase``. With "step" it is "step", the second dimension of values that have one row
                per environment is "env", and the columns of the steps are variables too. Steps of several processes
                come one process after another, with the coordinate ``rank``, which is there by record as well.
            fill, firings: with ``by="step"``, what stands in the row of a step in which a key did not fire once, as in
                ``stack``.

        Raises RaggedError where the keys did not fire in the same passes; StepError where one did not fire once in
        each step.
        """
        return to_xarray(align(self._view, self._steps, keys, by, Firings.of("to_xarray", fill, firings)))

    def to_tensordict(
        self,
        keys: str | Iterable[str] | None = None,
        by: Literal["step"] | None = None,
        *,
        fill: float | None = None,
        firings: Literal["last"] | None = None,
    ) -> tensordict.TensorDict:
        """Values in a tensordict of batch size [records], or with ``by="step"`` [steps] or [steps, envs].

        The arguments and errors are those of ``to_xarray``; needs the extra ``tensordict``.
        """
        return to_tensordict(align(self._view, self._steps, keys, by, Firings.of("to_tensordict", fill, firings)))

    @cached_property
    def sites(self) -> Mapping[str, SiteFacts]:
        """What was kept at each site, by name: kind, count, shapes, dtypes, bytes."""
        return sites_of(self._view)

    @property
    def steps(self) -> Steps:
        """The marked steps as a table of columns."""
        return self._steps

    def episodes(
        self,
        *,
        fill: float | None = None,
        firings: Literal["last"] | None = None,
        autoreset: Autoreset | None = None,
    ) -> list[Episode]:
        """The episodes of all environments, in order of their start.

        The steps need the columns ``terminated`` and ``truncated`` (or ``done``), with one value per environment, and a
        key that is read from an episode needs one firing per step; else a StepError says what is missing. The last
        episode of an environment may be open. Rows in which an environment was only reset belong to no episode.

        Arguments:
            fill, firings: what stands in the row of a step in which a key did not fire once (as with random actions,
                or in a warm-up), as in ``stack``.
            autoreset: "next_step" or "same_step", how vectorised environments reset, where the recorder was not told.
                A StepError asks for it where episodes ended and the steps leave it open.
        """
        return episodes_of(self._view, self._steps, Firings.of("episodes", fill, firings), autoreset)

    def keys(self) -> list[str]:
        """The names of the sites of which something was kept, in the order in which they first occurred."""
        return list(self.sites)

    @property
    def phases(self) -> list[str]:
        """The names of the phases of its passes and steps, in order."""
        numbers = {*self._view.passes["phase"].tolist(), *(table.phase for table in self._steps.tables)}
        return list(dict.fromkeys(self._view.catalog.phases[number] for number in sorted(numbers)))

    @property
    def entries(self) -> list[str]:
        """The entries of its passes: the addresses of the outermost modules that were called, or names of regions."""
        numbers = sorted(set(self._view.passes["entry"].tolist()))
        return [self._view.catalog.entries[number] for number in numbers]

    def iter_pass(self, pass_index: int) -> Iterator[ActivationRecord]:
        """The records of one pass."""
        mask = self._view.passes["pass_index"] == pass_index
        # A pass that kept nothing has no row, but it was counted, so an empty result is right for it.
        if not mask.any() and (pass_index < 0 or self.n_passes == len(self._view.passes)):
            indices = self._view.passes["pass_index"]
            hint = f"there are passes {indices.min()} to {indices.max()}" if len(indices) else "there are none"
            raise RecordKeyError(f"there is no pass {pass_index!r} here; {hint}")
        return iter(Records(self._view.of_passes(mask)))

    @property
    def halted(self) -> Mapping[int, str]:
        """Why passes were halted, by pass index."""
        indices = set(self._view.passes["pass_index"].tolist())
        return {index: reason for index, reason in self._view.catalog.halted.items() if index in indices}

    @property
    def predicate_failures(self) -> list[PredicateFailure]:
        """Predicates that raised, with context and error, where the recorder has ``on_predicate_error="collect"``."""
        return list(self._view.catalog.failures)

    def summary(self) -> str:
        """A table of the sites: how many records in how many passes, of what shape and dtype, how many bytes."""
        return summary_of(self._describe(), self.sites)

    def describe(self, **options: Any) -> RunStatistics:
        """The statistics of the values, of each site in each of some stretches of the run.

        >>> import torch, fastrec
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> with fastrec.Recorder(model, keep_op="relu") as rec:
        ...     for i in range(6):
        ...         out = model(torch.ones(5, 4) * i)
        >>> statistics = rec.recording.describe(bins=3)
        >>> statistics["1/relu"]["zeros"].shape
        (3,)

        Arguments:
            bins: into how many stretches of equally many passes the run is divided, at most; default 50.
            ranks: whether to compute effective ranks, which takes most of the time; default True.
            unit_axis: which axis of a value counts the units, by globs of sites, where it is neither the last one nor
                the channels of a convolution: ``{"attention/*": 1}``.
            progress: a function that is called with the bytes that were read, and those that there are.

        Values are read once, a few MiB at a time, from RAM or from files. Raises OptionError for options that do not
        fit. What is measured, and after whom: ``fastrec.report.MEASURES``.
        """
        return describe(self._view, self._steps.tables, describe_options(options))

    def to_html(
        self, path: str | PathLike[str], *, title: str | None = None, overwrite: bool = False, **options: Any
    ) -> None:
        """Write a page of the statistics that opens in any browser, from disk and offline.

        >>> import torch, fastrec
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> fastrec.record(model, torch.ones(5, 4), keep_op="relu").to_html("report.html")

        Arguments:
            path: where to write it.
            title: what stands above; by default the path without its ending.
            overwrite: whether to write over a file that is there.
            options: those of ``describe``; ``bins`` is 200 by default.

        Raises RecordingExistsError where there is a file.
        """
        name = os.path.splitext(os.path.basename(os.fspath(path)))[0] if title is None else title
        write_runs(lambda: {name: self.describe(**{"bins": 200, **options})}, path, overwrite=overwrite)

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a file, from which ``fastrec.load`` reads the same: values, contexts, steps and episodes.

        >>> import torch, fastrec
        >>> model = torch.nn.Linear(4, 2)
        >>> with fastrec.Recorder(model, keep_op="linear") as rec:
        ...     for _ in range(6):
        ...         out = model(torch.ones(3, 4))
        >>> rec.recording.select(passes=slice(2, 5)).save("part.h5")
        >>> fastrec.load("part.h5").stack("linear_1").shape
        torch.Size([3, 3, 2])

        Arguments:
            path: where to write it, a path that ends in .h5 or .hdf5.

        Passes and steps keep their numbers. Values that were kept with ``keep_grad`` lose their graph. Gradients are
        not written, and a warning says so. Raises RecordingExistsError where there is a recording.
        """
        tables: Sequence[PhaseSteps] = self._steps.tables
        if "_source" in self.__dict__ and not any(table.columns_before for table in tables):
            tables = self._source.steps()  # as they were marked, without what is worked out of them
        part = PartSource(self._view, tables)
        part.save(part, path)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per record, with the fields of its context; needs the extra ``pandas``."""
        return frame_of(self._view)

    def __repr__(self) -> str:
        return f"<Recording: {self._describe()}>"

    def _repr_html_(self) -> str:
        return recording_html(self._describe(), self._view, self.sites)

    def _describe(self) -> str:
        sites = len({self._view.site(meta).name for meta in self._view.metas})
        return (
            f"{format_count(self.n_records, 'record')} of {format_count(sites, 'site')} in "
            f"{format_count(self.n_passes, 'pass', 'passes')}"
        )

    def _of_key(self, key: str) -> View:
        try:
            return self._view.of_metas(metas_of_key(self._view, key))
        except RecordKeyError as error:
            if key in list(self._steps):
                raise RecordKeyError(f"{key!r} is a column of the steps: recording.steps[{key!r}]") from error
            raise

    def _rows_of(self, keys: str | Iterable[str], by: By) -> Rows | Mapping[str, Rows | Beside]:
        if isinstance(keys, str):
            return self.rows(keys, by)
        keys = list(keys)
        labels = [key for key in keys if key not in self and (key in LABELS or key in list(self._steps))]
        if labels and len(labels) == len(keys):
            raise RecordKeyError(
                f"{', '.join(map(repr, labels))} stand beside the rows of a key; give one too, such as one of "
                f"recording.keys(), or read columns alone from recording.steps[...]"
            )
        of_keys = [key for key in keys if key not in labels]
        views = views_of_keys(self._view, of_keys)
        rows = {key: Rows(view, key, by, None, self._steps) for key, view in views.items()}
        check_same_passes(rows)
        first = next(iter(rows.values()))
        return {**rows, **{name: Beside(first, *first.labels.tensor(name)) for name in labels}}


def _checked_keys(what: str, keys: Any) -> list[str]:
    listed = list(keys) if isinstance(keys, list | tuple) else []
    if not listed or not all(isinstance(key, str) for key in listed):
        raise RecordKeyError(f"{what}({keys!r}): give a module's address, a site or a label, or a list of them")
    return listed


def _batch_options(**options: Any) -> BatchOptions:
    try:
        return BatchOptions(**options)
    except TypeError:
        allowed = ", ".join(name for name in BatchOptions.__struct_fields__ if name != "batch_size")
        raise OptionError(f"iter_batches(..., {', '.join(options)}): the options are by, {allowed}") from None


def _of_phases(view: View, steps: Steps, phase: str | Iterable[str]) -> tuple[View, Steps]:
    names = view.catalog.phases
    view = view.of_passes(_names_mask("phase", phase, names, view.passes["phase"]))
    for table in steps.tables:
        is_selected = _names_mask("phase", phase, names, np.array([table.phase]))
        steps = steps.restrict(table.phase, np.repeat(is_selected, len(table.numbers)))
    return view, steps


def _of_pass_numbers(view: View, steps: Steps, passes: Numbers) -> tuple[View, Steps]:
    view = view.of_passes(_numbers_mask("passes", passes, view.passes["pass_index"]))
    for table in steps.tables:
        steps_with_passes = view.passes["step"][view.passes["phase"] == table.phase]
        steps = steps.restrict(table.phase, np.isin(table.numbers, steps_with_passes))
    return view, steps


def _of_step_numbers(view: View, steps: Steps, numbers: Numbers) -> tuple[View, Steps]:
    mask = np.zeros(len(view.passes), np.bool_)
    marks = {table.phase: table.numbers for table in steps.tables}
    for phase in sorted(view.phases_with_steps):
        positions = np.flatnonzero(view.passes["phase"] == phase)
        marked = marks.get(phase, np.empty(0, np.int64))
        step_of_pass = view.passes["step"][positions]
        # Together, so that a negative number counts from the same last step for both.
        is_selected = _numbers_mask("steps", numbers, np.concatenate([marked, step_of_pass]))
        steps = steps.restrict(phase, is_selected[: len(marked)])
        mask[positions] = is_selected[len(marked) :] & (step_of_pass >= 0)
    return view.of_passes(mask), steps


def _of_batch_size(view: View, steps: Steps, batch: Any) -> tuple[View, Steps]:
    if not isinstance(batch, int) or isinstance(batch, bool):
        raise OptionError(f"select(batch={batch!r}): give the size of the first dimension, a number")
    metas = [meta for meta in view.metas if view.meta(meta).shape[:1] == (batch,)]
    if not metas:
        sizes = sorted({shape[0] for meta in view.metas if (shape := view.meta(meta).shape)})
        raise RecordKeyError(f"select(batch={batch}): no value has that many rows; there are {sizes}")
    view = view.take(np.isin(view.meta_numbers, metas))
    # Passes that lose all their records are not part of the selection.
    has_records = np.zeros(len(view.passes), np.bool_)
    has_records[view.pass_positions] = True
    selected = view.of_passes(has_records)
    for table in steps.tables:
        of_phase = selected.passes["step"][selected.passes["phase"] == table.phase]
        steps = steps.restrict(table.phase, np.isin(table.numbers, of_phase))
    return selected, steps


def _numbers_mask(option: str, numbers: Numbers, values: Integers) -> Mask:
    """Which values are among some numbers; negative numbers count from the largest value."""
    end = int(values.max()) + 1 if len(values) else 0
    if isinstance(numbers, slice):
        start, stop, step = numbers.indices(end)
        return np.isin(values, np.arange(start, stop, step))
    if isinstance(numbers, range):
        return np.isin(values, np.arange(numbers.start, numbers.stop, numbers.step))
    listed = [numbers] if isinstance(numbers, int | np.integer) else _as_list(option, numbers)
    if not all(isinstance(number, int | np.integer) and not isinstance(number, bool) for number in listed):
        raise OptionError(f"select({option}={numbers!r}): give a number, a slice, a range or a set of numbers")
    return np.isin(values, np.array([number if number >= 0 else end + number for number in listed], dtype=np.int64))


def _names_mask(option: str, globs: str | Iterable[str], names: Interned[str], values: Integers) -> Mask:
    """Which values are the number of a name that some glob matches; a glob that matches no name is an error."""
    numbers: list[int] = []
    for glob in [globs] if isinstance(globs, str) else _as_list(option, globs):
        if not isinstance(glob, str):
            raise OptionError(f"select({option}={globs!r}): give a name, a glob or a list of them")
        names_of_glob = (AddressGlobs if option == "entry" else Globs)((glob,))
        matching = [number for number, name in enumerate(names.items) if name in names_of_glob]
        if not matching:
            hint = nearest(glob, names.items) if option == "entry" else did_you_mean(glob, names.items)
            raise RecordKeyError(f"select({option}={glob!r}) matches nothing; {hint}")
        numbers += matching
    return np.isin(values, np.array(numbers, dtype=np.int64))


def _as_list(option: str, value: Any) -> list[Any]:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise OptionError(f"select({option}={value!r}): give one of them, or a list")
    return list(value)
