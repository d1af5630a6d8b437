"""The ways in which a recording hands out values of many records at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt
from torch import Tensor

from fastrec._contracts import Part
from fastrec._errors import OptionError
from fastrec._recording_aligned import aligned, keys_of, to_tensordict, to_xarray, view_of
from fastrec._recording_batches import Batches, BatchOptions, RowsDataset, check_together
from fastrec._recording_frames import numpy_of
from fastrec._recording_keys import kinds_of
from fastrec._recording_rows import By, Rows
from fastrec._recording_stack import by_pass, stacked
from fastrec._recording_steps import Steps
from fastrec._recording_view import View

if TYPE_CHECKING:
    import tensordict
    import xarray


class Values(ABC):
    """Values by key: as a tensor, an array, rows, batches, or side by side in other libraries' containers."""

    @property
    @abstractmethod
    def _view(self) -> View:
        """Which records there are."""

    @property
    @abstractmethod
    def _steps(self) -> Steps:
        """The marked steps."""

    def stack(self, key: str, by: Literal["pass"] | None = None, part: Part | None = None) -> Tensor:
        """The values of a key as one tensor [records, ...], in order of (pass, event).

        >>> import torch, fastrec
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
        >>> recording = fastrec.record(model, torch.ones(2, 4), keep_op="relu")
        >>> recording.stack("1/relu").shape, recording.stack("1/relu", by="pass").shape
        (torch.Size([1, 2, 4]), torch.Size([1, 1, 2, 4]))

        Arguments:
            key: a module's address, a site or a label.
            by: "pass" gives [passes, firings, ...], of the passes in which it fired.
            part: "activation", "transformed_activation" or "gradient"; by default the activation, or the transformed
                one where the raw value was not kept.

        The result is a view of the memory in which the records lie, where they lie together. Values kept with
        ``keep_grad`` are stacked attached. Raises RaggedError where shapes, dtypes, leaves or sites differ.
        """
        if by not in (None, "pass"):
            raise OptionError(f"stack(by={by!r}): there is by='pass', or nothing")
        view = self._at(key)
        values = stacked(view, key, part)
        return by_pass(view, values, key) if by == "pass" else values

    def to_numpy(self, key: str, by: Literal["pass"] | None = None) -> npt.NDArray[Any]:
        """``stack`` as a numpy array; bfloat16 and float8, which numpy lacks, become float32."""
        return numpy_of(self.stack(key, by))

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
            by: by default a row is the value of one record, and all have one shape. With "sample" the first dimension
                of each value is taken apart, and may differ: [rows of all batches, ...].
            part: as in ``stack``.
        """
        return Rows(self._at(key), key, by, part)

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
            keys: a key, or several.
            batch_size: rows in a batch; the last one may have fewer.
            by: what a row is, as in ``rows``.
            shuffle: mix the rows: stretches of the file are read in random order, 32 at a time, and the rows of those
                are shuffled in memory.
            seed: makes the order the same each time, and another one for each ``set_epoch``; by default it is drawn
                from torch's generator for each iteration.
            drop_last: leave out a last batch that is not full.
            buffer_bytes: how much is read at a time (64 MiB), which is about half of the memory that it takes.
            shard: (rank, world size): read only this rank's share.

        What comes back is a ``torch.utils.data.IterableDataset``: hand it to a DataLoader with ``batch_size=None``.
        Raises RaggedError where rows differ in shape, or the keys did not fire in the same passes.
        """
        return Batches(self._rows_of(keys, by), _options(batch_size=batch_size, **options))

    def to_dataset(self, keys: str | Iterable[str], by: By = None) -> RowsDataset:
        """A ``torch.utils.data.Dataset`` of rows by number: tensors of one key, or dicts of several.

        It suits samplers that draw rows freely; ``iter_batches`` is quicker, as it reads a file in large stretches.
        """
        return RowsDataset(self._rows_of(keys, by))

    def to_xarray(self, keys: str | Iterable[str] | None = None, by: Literal["step"] | None = None) -> xarray.Dataset:
        """Values as an xarray data set, side by side; needs ``fastrec[xarray]``.

        Arguments:
            keys: a key or several; by default all sites.
            by: by default the first dimension is "record", with the coordinates ``pass_index``, ``step`` (-1 without)
                and ``phase``. With "step" it is "step", and "env" the second of values that have one row per
                environment; the columns of the steps are variables too.

        Raises RaggedError where the keys did not fire in the same passes; StepError where one did not fire once in
        each step.
        """
        return to_xarray(aligned(self._view, self._steps, keys, by))

    def to_tensordict(
        self, keys: str | Iterable[str] | None = None, by: Literal["step"] | None = None
    ) -> tensordict.TensorDict:
        """Values as a tensordict of batch size [records], or [steps] or [steps, envs] with ``by="step"``.

        The arguments and errors are those of ``to_xarray``; needs ``fastrec[tensordict]``.
        """
        return to_tensordict(aligned(self._view, self._steps, keys, by))

    def _at(self, key: str) -> View:
        return self._view.of_kinds(kinds_of(self._view, key))

    def _rows_of(self, keys: str | Iterable[str], by: By) -> Rows | dict[str, Rows]:
        if isinstance(keys, str):
            return self.rows(keys, by)
        found = {key: Rows(view_of(self._view, key, keys), key, by, None) for key in keys_of(self._view, keys)}
        check_together(found)
        return found


def _options(**given: Any) -> BatchOptions:
    try:
        return BatchOptions(**given)
    except TypeError:
        known = ", ".join(name for name in BatchOptions.__struct_fields__ if name != "batch_size")
        raise OptionError(f"iter_batches(..., {', '.join(given)}): the options are by, {known}") from None
