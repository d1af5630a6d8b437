"""What an operation is called, and its value."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrec.graph._operation_base import Facts


class ValueFacts(Facts):
    """Labels, numbers and the value of an operation."""

    __slots__ = ()

    @property
    def layer_label(self) -> str:
        """The label of its layer, as in ``conv2d_3_7``."""
        return self._layer.label

    @property
    def layer_label_w_pass(self) -> str:
        """The label of its layer with the number of the pass, as in ``conv2d_3_7:1``."""
        return f"{self._layer.label}:{self.pass_num}"

    @property
    def operation_num(self) -> int:
        """How many tensor operations had run by it, itself included; inputs, buffers and outputs are none."""
        return self._graph.numbers[self.index]

    @property
    def layer_type(self) -> str:
        """The canonical name of the function, ``"input"``, ``"buffer"`` or ``"output"``."""
        return self._layer.layer_type

    @property
    def layer_type_num(self) -> int:
        """The how-manieth layer of its type it is, from 1."""
        return self._layer.type_number

    @property
    def layer_total_num(self) -> int:
        """The how-manieth layer it is, from 1; 0 for inputs and buffers, which are not counted."""
        return self._layer.total_number

    @property
    def pass_num(self) -> int:
        """Which pass of its layer it is, from 1."""
        return self._graph.pass_numbers[self.index]

    @property
    def layer_passes_total(self) -> int:
        """How many passes its layer has."""
        return len(self._layer.ops)

    @property
    def lookup_keys(self) -> list[str | int]:
        """All keys under which the history finds it."""
        return self.history.keys.of(self.index)

    @property
    def activation(self) -> Tensor | None:
        """The value as it was when the operation returned, None where it was not saved."""
        return self.raw.value

    @property
    def tensor_contents(self) -> Tensor | None:
        """The same as ``activation``."""
        return self.activation

    @property
    def tensor(self) -> Tensor | None:
        """The same as ``activation``."""
        return self.activation

    @property
    def transformed_activation(self) -> Tensor | None:
        """What ``activation_postfunc`` made of the value."""
        return self.raw.transformed

    @property
    def transformed_activation_shape(self) -> tuple[int, ...] | None:
        """The shape of ``transformed_activation``."""
        transformed = self.raw.transformed
        return None if transformed is None else tuple(transformed.shape)

    @property
    def has_saved_activations(self) -> bool:
        """Whether a value was saved, raw or transformed."""
        return self.raw.is_saved

    @property
    def not_saved_because(self) -> str:
        """Why no right copy could be made of a value that was asked for; empty where one could."""
        return self.raw.unsaved

    @property
    def gradient(self) -> Tensor | None:
        """The gradient that reached the value, the sum of several; None before a backward pass or without one."""
        return self._graph.capture.gradients.get(self.index)

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient has reached the value."""
        return self.index in self._graph.capture.gradients

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The dimensions of the value."""
        return self.raw.shape

    @property
    def tensor_dtype(self) -> torch.dtype:
        """The data type of the value."""
        return self.raw.dtype

    @property
    def tensor_device(self) -> torch.device:
        """The device that the value was on."""
        return self.raw.device

    @property
    def tensor_fsize(self) -> int:
        """The size of the value in bytes."""
        return self.raw.nbytes

    @property
    def label(self) -> str:
        """The label of the fast path's event, as in ``relu_3``: the third relu outside of composites to run."""
        return self.raw.call.label

    @property
    def site(self) -> str:
        """The place in the model by which the fast path knows it, as in ``features.3/relu``."""
        return self.raw.call.site + (self.raw.path if self.raw.kind == "op" else "")
