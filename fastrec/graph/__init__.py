"""The slow path: the whole graph of a forward pass."""

from fastrec.graph._diff import HistoryDiff as HistoryDiff
from fastrec.graph._file_load import load_history as load_history
from fastrec.graph._history import ModelHistory as ModelHistory
from fastrec.graph._layer import LayerEntry as LayerEntry
from fastrec.graph._log import get_model_metadata as get_model_metadata
from fastrec.graph._log import log_forward_pass as log_forward_pass
from fastrec.graph._operation import Operation as Operation
from fastrec.graph._operations import Operations as Operations
from fastrec.graph._stacks import FuncCallLocation as FuncCallLocation
from fastrec.graph._validation import validate_history as validate_history
from fastrec.graph._validation import validate_saved_activations as validate_saved_activations
from fastrec.graph._validation_recording import validate_recording as validate_recording
from fastrec.graph._validation_report import ValidationReport as ValidationReport
