"""fastrec records what a PyTorch model computes while it runs again and again, and keeps what a predicate asks for.

>>> import torch, fastrec
>>> policy = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
>>> with fastrec.Recorder(policy, keep_op="tanh") as rec:
...     for _ in range(100):
...         actions = policy(torch.randn(8, 4))
>>> rec.recording.stack("1/tanh").shape
torch.Size([100, 8, 64])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastrec._errors import FastrecError as FastrecError
from fastrec._errors import FastrecWarning as FastrecWarning
from fastrec._optional import __version__ as __version__
from fastrec.dryrun.dry_run import DryRun as DryRun
from fastrec.dryrun.dry_run import dry_run as dry_run
from fastrec.events.capture import CaptureSpec as CaptureSpec
from fastrec.events.context import RecordContext as RecordContext
from fastrec.extract._extract import extract as extract
from fastrec.extract._features import features as features
from fastrec.recording._recording import ActivationRecord as ActivationRecord
from fastrec.recording._recording import Recording as Recording
from fastrec.session.failures import halt as halt
from fastrec.session.record import record as record
from fastrec.session.recorded import Recorded as Recorded
from fastrec.session.recorder import Recorder as Recorder

if TYPE_CHECKING:
    from fastrec.files._load import load as load
    from fastrec.files._load import recover as recover

# What needs h5py or the graph half of the package is loaded when it is first used, so that the import stays quick.
_LOADED_LATER = {
    "load": "fastrec.files._load",
    "recover": "fastrec.files._load",
    "exports": "fastrec.exports",
    "files": "fastrec.files",
    "graph": "fastrec.graph",
    "integrations": "fastrec.integrations",
}


def __getattr__(name: str) -> Any:
    if name not in _LOADED_LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_LOADED_LATER[name])
    return module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LOADED_LATER})


__all__ = [  # noqa: PLE0604
    *("ActivationRecord", "CaptureSpec", "DryRun", "FastrecError", "FastrecWarning", "RecordContext", "Recorded"),
    *(
        "Recorder",
        "Recording",
        "dry_run",
        "exports",
        "extract",
        "features",
        "files",
        "graph",
        "halt",
        "integrations",
        "load",
        "record",
        "recover",
    ),
]
