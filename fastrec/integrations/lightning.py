"""Steps and phases of a Lightning trainer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from fastrec._optional import require
from fastrec.session.recorder import Recorder

require("pytorch_lightning", extra="lightning", what=__name__)

from pytorch_lightning import Callback, LightningModule, Trainer


class RecordCallback(Callback):
    """A callback that names the recorder's phases after what the trainer does, and marks a step per training batch.

    >>> import torch, pytorch_lightning as pl, fastrec
    >>> from fastrec.integrations.lightning import RecordCallback
    >>> class Model(pl.LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    ...     def training_step(self, batch, index):
    ...         return self.net(batch).square().mean()
    ...     def configure_optimizers(self):
    ...         return torch.optim.SGD(self.parameters(), lr=0.1)
    >>> model, data = Model(), torch.utils.data.DataLoader(torch.ones(32, 4), batch_size=8)

    Open the recorder around the trainer, and give the trainer the callback:

    >>> import warnings, logging
    >>> logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    >>> with fastrec.Recorder(model, keep_op="tanh") as rec, warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
    ...                          enable_progress_bar=False, enable_model_summary=False, callbacks=[RecordCallback(rec)])
    ...     trainer.fit(model, data)
    >>> rec.recording.select(phase="train").stack("net.1/tanh").shape
    torch.Size([4, 8, 8])

    The phases are "train", "sanity_check", "validate", "test" and "predict". Only "train" has steps, one per batch.
    An exception that leaves the trainer ends the phase too. Validation runs without gradients, so select values that a
    training step needs attached to autograd with ``grad_enabled()`` or ``phase("train")``.

    Arguments:
        rec: a recorder that is open while the trainer runs.
    """

    def __init__(self, rec: Recorder) -> None:
        super().__init__()
        self._rec = rec
        self._phases: list[AbstractContextManager[None]] = []

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the phase "sanity_check"."""
        self._begin("sanity_check")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the phase."""
        self._end()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the phase "train"."""
        self._begin("train")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Mark a step."""
        self._rec.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the phase."""
        self._end()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the phase "validate", unless this is the sanity check."""
        if not trainer.sanity_checking:
            self._begin("validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the phase."""
        if not trainer.sanity_checking:
            self._end()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the phase "test"."""
        self._begin("test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the phase."""
        self._end()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the phase "predict"."""
        self._begin("predict")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the phase."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End all phases."""
        while self._phases:
            self._end()

    def _begin(self, name: str) -> None:
        phase = self._rec.phase(name)
        phase.__enter__()
        self._phases.append(phase)

    def _end(self) -> None:
        self._phases.pop().__exit__(None, None, None)
