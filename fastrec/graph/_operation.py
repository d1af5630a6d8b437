"""One operation of a history."""

from __future__ import annotations

from torch import Tensor

from fastrec.graph._operation_call import CallFacts
from fastrec.graph._operation_modules import ModuleFacts
from fastrec.graph._operation_relations import RelationFacts
from fastrec.graph._operation_show import shown
from fastrec.graph._operation_value import ValueFacts
from fastrec.recording._recording import Recording
from fastrec.recording._records import ActivationRecord


class Operation(ValueFacts, CallFacts, RelationFacts, ModuleFacts):
    """One operation of a pass: its value, what computed it, and where it stands in the graph and in the modules.

    >>> import torch
    >>> from fastrec.graph import log_forward_pass
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> relu = log_forward_pass(model, torch.ones(2, 4))["relu_1_2"]
    >>> relu.tensor_shape, relu.parent_layers, relu.containing_module_origin
    ((2, 8), ['linear_1_1'], '1:1')

    Made by a history, read from it by ``history[key]``.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return shown(self)

    __repr__ = __str__

    def records_in(self, recording: Recording) -> list[ActivationRecord]:
        """The records of a fast recording that hold this operation's value, those of modules included.

        >>> import torch, fastrec
        >>> from fastrec.graph import log_forward_pass
        >>> model, x = torch.nn.Sequential(torch.nn.Tanh()), torch.ones(2)
        >>> recording = fastrec.record(model, x, keep_op=True, keep_module=True)
        >>> [r.ctx.site for r in log_forward_pass(model, x)["tanh_1"].records_in(recording)]
        ['0/tanh', '0', ':out']
        """
        return [record for record in recording if self.history.finds(record) == self.index]

    def materialize_activation(self) -> Tensor | None:
        """The saved value, taken into memory for good where it lies in a file."""
        self.raw.value = self.raw.value
        return self.activation
