"""The slow path: the whole graph of one forward pass.

    history = log_forward_pass(model, x)
    history["relu_1"].parent_layers, history["relu_1"].activation

``import fastrec`` does not load this package. Nor does it load its own files before a name is asked for: ``graph.draw``
lies below it, and what draws a dry run needs no graph.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrec.graph.call_stack import FuncCallLocation as FuncCallLocation
    from fastrec.graph.diff import HistoryDiff as HistoryDiff
    from fastrec.graph.history import ModelHistory as ModelHistory
    from fastrec.graph.history import load_history as load_history
    from fastrec.graph.log import get_model_metadata as get_model_metadata
    from fastrec.graph.log import log_forward_pass as log_forward_pass
    from fastrec.graph.operation import Operation as Operation
    from fastrec.graph.operations import LayerEntry as LayerEntry
    from fastrec.graph.operations import Operations as Operations
    from fastrec.graph.pictures import preview as preview
    from fastrec.graph.pictures import show_model_graph as show_model_graph
    from fastrec.graph.previews import Preview as Preview
    from fastrec.graph.validation.recording import validate_recording as validate_recording
    from fastrec.graph.validation.report import ValidationReport as ValidationReport
    from fastrec.graph.validation.saved import validate_history as validate_history
    from fastrec.graph.validation.saved import validate_saved_activations as validate_saved_activations

_LATER = {
    "FuncCallLocation": "fastrec.graph.call_stack",
    "HistoryDiff": "fastrec.graph.diff",
    "ModelHistory": "fastrec.graph.history",
    "load_history": "fastrec.graph.history",
    "get_model_metadata": "fastrec.graph.log",
    "log_forward_pass": "fastrec.graph.log",
    "Operation": "fastrec.graph.operation",
    "LayerEntry": "fastrec.graph.operations",
    "Operations": "fastrec.graph.operations",
    "preview": "fastrec.graph.pictures",
    "show_model_graph": "fastrec.graph.pictures",
    "Preview": "fastrec.graph.previews",
    "validate_recording": "fastrec.graph.validation.recording",
    "ValidationReport": "fastrec.graph.validation.report",
    "validate_history": "fastrec.graph.validation.saved",
    "validate_saved_activations": "fastrec.graph.validation.saved",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
