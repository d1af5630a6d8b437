"""A Lightning trainer: phases by what it does, steps per batch, and auxiliary losses on recorded values."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fastrec
from fastrec import Recorder
from fastrec._errors import OptionError, SessionError
from fastrec.integrations.lightning import RecordCallback
from fastrec.predicates import grad_enabled, module, op, phase

BATCHES, SIZE = 6, 8


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def loader() -> DataLoader[Any]:
    x = torch.randn(BATCHES * SIZE, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=SIZE)


def trainer(rec: Recorder | None = None, **options: Any) -> pl.Trainer:
    given = {"max_epochs": 2, "num_sanity_val_steps": 1, "limit_val_batches": 3, **options}
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[] if rec is None else [RecordCallback(rec)],
        **given,
    )


class Plain(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return F.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.net(batch[0])

    test_step = validation_step

    def predict_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


# Lightning advises more workers for a loader than a test has use for.
pytestmark = pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers")


def made(kind: type[pl.LightningModule], *args: Any) -> Any:
    torch.manual_seed(3)
    return kind(*args)


def test_phases_are_what_the_trainer_does_and_steps_are_batches() -> None:
    model = made(Plain)
    with Recorder(model, keep_op="tanh") as rec:
        trainer(rec).fit(model, loader(), loader())
        trainer(rec).validate(model, loader(), verbose=False)
        trainer(rec).test(model, loader(), verbose=False)
        trainer(rec, limit_predict_batches=2).predict(model, loader())
        model.net(torch.zeros(1, 4))
    recording = rec.recording
    passes = {name: recording.select(phase=name).n_passes for name in ("train", "sanity_check", "validate", "test")}
    assert passes == {"train": 2 * BATCHES, "sanity_check": 1, "validate": 3 + 2 * 3, "test": BATCHES}
    assert recording.select(phase="predict").n_passes == 2
    assert recording.select(phase="").n_passes == 1
    train = recording.select(phase="train")
    assert [record.ctx.step for record in train] == list(range(2 * BATCHES))
    assert set(recording.steps.phase) == {"train"}
    assert train.select(grad=False).n_passes == 0 and recording.select(phase="validate", grad=True).n_passes == 0


def test_learning_is_not_changed(tmp_path: Path) -> None:
    plain, model = made(Plain), made(Plain)
    trainer().fit(plain, loader(), loader())
    with Recorder(model, keep_op=True, keep_module=True) as rec:
        fitting = trainer(rec)
        fitting.fit(model, loader(), loader())
        fitting.save_checkpoint(tmp_path / "model.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    saved = torch.load(tmp_path / "model.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(saved["net.0.weight"], model.net[0].weight)


class Sparse(Plain):
    """Its hidden layer is kept small by an auxiliary loss on what the recorder kept of this very step."""

    rec: Recorder
    held: list[int]

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = F.mse_loss(self.net(batch[0]), batch[1])
        hidden = self.rec.pop().stack("net.1/tanh")
        self.held.append(len(hidden))
        return loss + 0.5 * hidden.abs().mean()


class SparseByHand(Plain):
    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        hidden = self.net[:2](batch[0])
        return F.mse_loss(self.net[2](hidden), batch[1]) + 0.5 * hidden.abs().mean()


def test_an_auxiliary_loss_in_the_training_step_equals_one_by_hand() -> None:
    expected, model = made(SparseByHand), made(Sparse)
    trainer().fit(expected, loader(), loader())
    with Recorder(model, keep_op=op("tanh") & grad_enabled(), train_mode=True) as rec:
        model.rec, model.held = rec, []
        trainer(rec).fit(model, loader(), loader())
    assert model.held == [1] * 2 * BATCHES
    for a, b in zip(expected.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


class Distilled(Plain):
    """Its hidden layer follows that of a teacher, which is no part of it."""

    rec: Recorder

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = [teacher]

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        with torch.no_grad():
            self.teacher[0](batch[0])
        self.net(batch[0])
        kept = self.rec.pop()
        return F.mse_loss(kept.stack("student.net.1"), kept.stack("teacher.1"))


def test_distillation_from_a_teacher_that_is_another_root() -> None:
    torch.manual_seed(9)
    teacher = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).eval()
    model = made(Distilled, teacher)

    def distance() -> float:
        x = loader().dataset.tensors[0]  # type: ignore[attr-defined]
        with torch.no_grad():
            return float(F.mse_loss(model.net[:2](x), teacher[:2](x)))

    before = distance()
    keep = module("teacher.1") | (module("student.net.1") & phase("train")).with_(keep_grad=True)
    with Recorder({"student": model, "teacher": teacher}, keep_module=keep) as rec:
        model.rec = rec
        trainer(rec, max_epochs=5).fit(model, loader(), loader())
    assert distance() < 0.9 * before
    assert all(p.grad is None for p in teacher.parameters())


class Failing(Plain):
    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = super().training_step(batch, index)
        if index == 3:
            raise ZeroDivisionError
        return loss


def test_an_exception_ends_the_phase_and_keeps_what_was_recorded() -> None:
    model = made(Failing)
    with Recorder(model, keep_op="tanh") as rec:
        with pytest.raises(ZeroDivisionError):
            trainer(rec).fit(model, loader(), loader())
        model.net(torch.zeros(1, 4))
    assert rec.recording.select(phase="train").n_passes == 4
    assert len(rec.recording.steps) == 3
    assert rec.recording[-1].ctx.phase == ""


def with_callback(callback: RecordCallback, **options: Any) -> pl.Trainer:
    fitting = trainer(**options)
    fitting.callbacks.append(callback)  # type: ignore[attr-defined]
    return fitting


def test_a_callback_with_options_opens_a_recorder_for_each_call_of_the_trainer(tmp_path: Path) -> None:
    model, callback = made(Plain), RecordCallback(sink=f"{tmp_path}/run/", keep_op="tanh")
    with pytest.raises(SessionError, match=r"call trainer\.fit first"):
        callback.rec  # noqa: B018
    with_callback(callback, max_epochs=1).fit(model, loader(), loader())
    assert callback.rec.recording.select(phase="train").n_passes == BATCHES
    with_callback(callback).test(model, loader(), verbose=False)
    assert callback.rec.recording.select(phase="test").n_passes == BATCHES
    model.net(torch.zeros(1, 4))  # recorded by nobody
    recording = fastrec.load(tmp_path / "run", live=True)
    assert (recording.state, len(recording.processes)) == ("finished", 2)
    passes = {name: recording.select(phase=name).n_passes for name in recording.phases}
    assert passes == {"train": BATCHES, "sanity_check": 1, "validate": 3, "test": BATCHES}


def test_a_callback_with_options_closes_its_recorder_when_the_trainer_fails(tmp_path: Path) -> None:
    model, callback = made(Failing), RecordCallback(sink=f"{tmp_path}/run/", keep_op="tanh")
    with pytest.raises(ZeroDivisionError):
        with_callback(callback, num_sanity_val_steps=0).fit(model, loader(), loader())
    model.net(torch.zeros(1, 4))  # recorded by nobody
    recording = fastrec.load(tmp_path / "run", live=True)
    assert (recording.state, recording.n_passes, len(recording.steps)) == ("finished", 4, 3)


def test_a_callback_takes_a_recorder_or_the_options_of_one() -> None:
    with pytest.raises(OptionError, match="either a recorder that is open, or the options of one"):
        RecordCallback()
    with pytest.raises(OptionError, match="either a recorder that is open, or the options of one"):
        RecordCallback(Recorder(made(Plain), keep_op="tanh"), keep_op="tanh")
