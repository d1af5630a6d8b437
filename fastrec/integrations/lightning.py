"""Steps and phases of a Lightning trainer, and a recorder in each process that it starts.

Trainer(strategy="ddp", devices=2, callbacks=[RecordCallback(sink="run/", keep_op="tanh")])
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from fastrec._errors import OptionError, SessionError
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

    Where the trainer starts processes of its own (``strategy="ddp"``, ``"ddp_spawn"``), give the callback the
    options of a recorder. It opens one in each process, when the trainer sets up, and closes it when the trainer is
    done, by an exception too:

    >>> callback = RecordCallback(sink="lightning/", keep_op="tanh")
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
    ...                          enable_progress_bar=False, enable_model_summary=False, callbacks=[callback])
    ...     trainer.fit(model, data)
    >>> fastrec.load("lightning/").stack("net.1/tanh").shape
    torch.Size([4, 8, 8])

    Each call of ``fit``, ``validate``, ``test`` and ``predict`` opens a recorder, and with a folder as ``sink`` each
    writes a file of its own. ``callback.rec`` is the one that was opened last in this process.

    Arguments:
        rec: a recorder that is open while the trainer runs; None for one that the callback opens.
        options: those of ``Recorder``, for the recorder that the callback opens. Its model is the LightningModule.

    Raises OptionError for a recorder and options together, and for neither.
    """

    def __init__(self, rec: Recorder | None = None, **options: Any) -> None:
        super().__init__()
        if (rec is None) == (not options):
            raise OptionError(
                f"RecordCallback(rec={rec!r}, options={options!r}): give either a recorder that is open, or the "
                "options of one, such as RecordCallback(sink='run/', keep_op='relu')"
            )
        self._rec = rec
        self._options = options
        self._phases: list[AbstractContextManager[None]] = []

    @property
    def rec(self) -> Recorder:
        """The recorder; SessionError where the callback has opened none in this process yet."""
        if self._rec is None:
            raise SessionError("the callback opens its recorder when the trainer sets up; call trainer.fit first")
        return self._rec

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open a recorder, if the callback has the options of one."""
        if self._options:
            self._rec = Recorder(pl_module, **self._options).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the recorder that was opened here."""
        if self._options:
            self.rec.stop()

    def __getstate__(self) -> dict[str, Any]:
        # What the trainer starts by pickling opens a recorder of its own.
        return {**self.__dict__, "_rec": None, "_phases": []} if self._options else self.__dict__

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
        self.rec.step()

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
        """End all phases, and close the recorder that was opened here: the trainer tears nothing down."""
        while self._phases:
            self._end()
        if self._options and self._rec is not None:
            self._rec.__exit__(type(exception), exception, exception.__traceback__)

    def _begin(self, name: str) -> None:
        phase = self.rec.phase(name)
        phase.__enter__()
        self._phases.append(phase)

    def _end(self) -> None:
        self._phases.pop().__exit__(None, None, None)
