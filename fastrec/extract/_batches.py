"""From what a user has (a data set, a DataLoader, a folder of images) to batches that a model can be called with.

    batches = batches_of(data, model, BatchOptions(batch_size=64))
    for batch in batches.after(128):                # the first 128 samples were done before
        model(*batch.args, **batch.kwargs)
        batch.sample_ids

A batch is what the data gives. Its inputs and its ids are found by rules that a function of the user's can replace.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from torch import Tensor, as_tensor, device, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset

from fastrec._errors import OptionError
from fastrec._optional import require
from fastrec._torch.trees import leaves

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
"""How the files of images end."""


class DataOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How batches are made and read; ``extract`` describes each option."""

    batch_size: int = 32
    num_workers: int = 0
    collate: Callable[[list[Any]], Any] | None = None
    preprocess: Callable[[Any], Any] | None = None
    inputs: Callable[[Any], Any] | None = None
    sample_ids: str | Callable[[Any], Sequence[Any]] | Sequence[Any] | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise OptionError(f"extract({name}={value!r}): give a whole number from {least} up")
        for name in ("collate", "preprocess", "inputs"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise OptionError(f"extract({name}={getattr(self, name)!r}): give a function")


class Batch(msgspec.Struct, frozen=True):
    """What one call of the model gets, and the ids of its samples."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sample_ids: list[Any]

    def beginning(self, count: int) -> Batch:
        """The first few of its samples."""
        size = len(self.sample_ids)
        args, kwargs = _sliced(self.args, size, count), _sliced(self.kwargs, size, count)
        return Batch(args, kwargs, self.sample_ids[:count])


class DataBatches(msgspec.Struct, frozen=True):
    """The batches of some data, in an order that is the same each time.

    Arguments:
        read: gives what the batches are made of; where it ``can_seek``, from the sample on that it is given.
        model: what the batches are for.
        options: how a batch is read.
        n_samples: how many samples there are, where that is known.
        names: the ids of all samples, where these are known beforehand.
    """

    read: Callable[[int], Iterable[Any]]
    model: nn.Module
    options: DataOptions
    n_samples: int | None = None
    names: Sequence[Any] | None = None
    can_seek: bool = False

    def after(self, n_samples: int) -> Iterator[Batch]:
        """The batches behind so many samples; OptionError where these end inside of a batch."""
        first = n_samples if self.can_seek else 0
        for content in self.read(first):
            args, kwargs = self._inputs(content)
            size = _size(args, kwargs)
            if first >= n_samples:
                yield Batch(args, kwargs, self._ids(content, first, size))
            elif first + size > n_samples:
                raise OptionError(
                    f"{n_samples} samples were extracted before, and these end inside of the batch of samples {first} "
                    f"to {first + size - 1}; give batches of the size that they had, or another path"
                )
            first += size

    def check_beginning(self, ids: Sequence[Any]) -> None:
        """Raise OptionError unless the data begins with samples of these ids, as far as that is known beforehand."""
        names: Sequence[Any] | None = self.names
        if self.options.sample_ids is None and names is None:
            names = range(len(ids))
        first = next((n for n, (a, b) in enumerate(zip(ids, names or (), strict=False)) if a != b), None)
        if names is not None and first is not None:
            raise OptionError(
                f"row {first} of what was extracted before is of sample {ids[first]!r}, and sample {first} of this "
                f"data is {names[first]!r}; it is of other data, or a file of it is lost: give another path"
            )

    def _inputs(self, content: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model is called with."""
        inputs: Any = content
        if self.options.inputs is not None:
            inputs = self.options.inputs(content)
            if isinstance(inputs, tuple):
                return inputs, {}
        elif type(content) in (tuple, list) and content:
            inputs = content[0]  # [inputs, labels], as data sets have it
        if not isinstance(inputs, Mapping):
            return (inputs,), {}
        if self.options.inputs is not None:
            return (), dict(inputs)
        taken = {name: value for name, value in inputs.items() if name in _parameters(self.model)}
        if not taken:
            raise OptionError(
                f"a batch is a dict of {list(inputs)}, and {type(self.model).__name__}.forward takes none of these; "
                "say what it takes, as in extract(..., inputs=lambda batch: batch['image'])"
            )
        return (), taken

    def _ids(self, content: Any, first: int, size: int) -> list[Any]:
        given: Any = self.options.sample_ids
        if self.names is not None:
            ids = list(self.names[first : first + size])
        elif given is None:
            return list(range(first, first + size))
        elif isinstance(given, str):
            if not isinstance(content, Mapping) or given not in content:
                columns = (
                    f"a dict of {list(content)}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
                )
                raise OptionError(f"extract(sample_ids={given!r}) names no column of a batch, which is {columns}")
            ids = _listed(content[given])
        else:
            ids = _listed(given(content))
        if len(ids) != size:
            raise OptionError(f"a batch of {size} samples has {len(ids)} sample ids; give one for each sample")
        return ids


def batches_of(data: Any, model: nn.Module, options: DataOptions) -> DataBatches:
    """The batches of anything that ``extract`` takes; OptionError for anything else."""
    ids: Any = options.sample_ids
    names = None if ids is None or isinstance(ids, str) or callable(ids) else ids
    if isinstance(data, str | os.PathLike):
        data = ImageFolder(data, options.preprocess)
        names = data.names if ids is None else names
    elif options.preprocess is not None:
        raise OptionError("extract(preprocess=...) is for a folder of images; let the data set do it")
    if isinstance(data, DataLoader):
        return DataBatches(_from_start(data), model, options, _samples_of_loader(data), names)
    if isinstance(data, Tensor | np.ndarray):
        data = _TensorRows(as_tensor(data))
    if _is_huggingface(data) and data.format["type"] is None:
        data = data.with_format("torch")
    count = _length(data) if isinstance(data, Dataset) or _is_huggingface(data) else None
    if count is not None:
        if names is not None and len(names) != count:
            raise OptionError(f"extract(sample_ids=...) has {len(names)} ids, and the data has {count} samples")
        return DataBatches(_loaders(data, count, options), model, options, count, names, can_seek=True)
    if isinstance(data, Iterable) and not isinstance(data, Mapping | nn.Module):
        return DataBatches(_from_start(data), model, options, None, names)
    raise OptionError(
        f"extract(model, data) got a {type(data).__name__}; give a DataLoader, a data set, a tensor of samples, an "
        "iterable of batches, or the path of a folder of images"
    )


class ImageFolder(Dataset[Any]):
    """The images in a folder and below it, sorted by their paths."""

    def __init__(self, folder: str | os.PathLike[str], preprocess: Callable[[Any], Any] | None) -> None:
        if preprocess is None:
            raise OptionError(
                f"extract(model, {os.fspath(folder)!r}): give preprocess=, a function from a PIL image to a tensor, "
                "such as the transform of timm.data.create_transform or of torchvision's weights"
            )
        self._pil = require("PIL.Image", extra="images", what="extract() from a folder of images")
        self._folder, self._preprocess = os.fspath(folder), preprocess
        self.names = sorted(
            os.path.relpath(os.path.join(place, name), self._folder).replace(os.sep, "/")
            for place, _, names in os.walk(self._folder)
            for name in names
            if os.path.splitext(name)[1].lower() in IMAGES
        )
        if not self.names:
            raise OptionError(
                f"{self._folder!r} is no folder with images; their names end in {', '.join(sorted(IMAGES))}"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Any:
        with self._pil.open(os.path.join(self._folder, self.names[number])) as image:
            return self._preprocess(image.convert("RGB"))


class _TensorRows(Dataset[Any]):
    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Tensor:
        return self._rows[number]


def to_device(value: Any, target: device) -> Any:
    """A value whose tensors lie on a device."""
    return _replaced(value, lambda tensor: tensor.to(target, non_blocking=True))


def _sliced(value: Any, size: int, count: int) -> Any:
    """A nested value with the first few rows of each tensor that has a row for each sample."""
    return _replaced(value, lambda tensor: tensor[:count] if tensor.shape[:1] == (size,) else tensor)


def _replaced(value: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """A nested value with each tensor replaced; a mapping becomes a dict."""
    if isinstance(value, Tensor):
        return replace(value)
    if isinstance(value, Mapping):
        return {name: _replaced(element, replace) for name, element in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_replaced(element, replace) for element in value)
    return value


def _loaders(data: Any, count: int, options: DataOptions) -> Callable[[int], Iterable[Any]]:
    def read(first: int) -> Iterable[Any]:
        rest = data if first == 0 else Subset(data, range(first, count))
        return DataLoader(rest, options.batch_size, num_workers=options.num_workers, collate_fn=options.collate)

    return read


def _from_start(data: Iterable[Any]) -> Callable[[int], Iterable[Any]]:
    return lambda first: data


def _samples_of_loader(loader: DataLoader[Any]) -> int | None:
    """How many samples a loader gives, where that is known; OptionError where each time gives another order."""
    if isinstance(loader.sampler, RandomSampler):
        raise OptionError(
            "extract() got a DataLoader with shuffle=True, whose rows would not be in the order of the data set, and "
            "could not be resumed; give shuffle=False, and shuffle when you read: recording.iter_batches(shuffle=True)"
        )
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return None
    count = len(loader.sampler)  # type: ignore[arg-type]
    return count - count % (loader.batch_size or 1) if loader.drop_last else count


def _is_huggingface(data: Any) -> bool:
    """Whether data is a ``datasets.Dataset``, without importing what only its users have."""
    return type(data).__module__.startswith("datasets.") and type(data).__name__ == "Dataset"


def _length(data: Any) -> int | None:
    if isinstance(data, IterableDataset):
        return None
    try:
        return len(data)
    except TypeError:
        return None


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def _size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many samples a batch has: the first dimension of its first tensor."""
    first = next((value for _, value in leaves((args, kwargs)) if value.ndim), None)
    if first is None:
        raise OptionError(
            f"a batch of {', '.join(type(value).__name__ for value in (*args, *kwargs.values()))} has no tensor with a "
            "dimension for its samples; give batches of tensors, or inputs=, a function that makes them of a batch"
        )
    return len(first)


def _listed(ids: Any) -> list[Any]:
    listed: list[Any] = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else list(ids)
    return listed
