"""The same work by Lightning."""

import tempfile
from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.nn import functional as F

from contest.by_hand import Outcome
from contest.inputs import read_splits
from contest.job import Job, enter, optimizer_for
from contest.networks import build
from contest.peers import finished, loader, schedule_of


class _Module(L.LightningModule):
    def __init__(self, job: Job, model: nn.Module, outcome: Outcome) -> None:
        super().__init__()
        self.job, self.model, self.outcome, self.right = job, model, outcome, 0

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        labels = batch.pop("labels")
        return F.cross_entropy(self.model(**batch), labels)

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        labels = batch.pop("labels")
        outputs = self.model(**batch)
        self.right += int((outputs.argmax(1) == labels).sum())
        float(F.cross_entropy(outputs, labels))

    def test_step(self, batch: dict[str, Tensor]) -> None:
        self.validation_step(batch)

    def on_test_epoch_start(self) -> None:
        self.right = 0

    def on_train_epoch_start(self) -> None:
        if self.job.begins(self.current_epoch):
            enter(self.model, self.job.phase_of(self.current_epoch))

    def on_train_epoch_end(self) -> None:
        self.outcome.epoch_is_over()

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_for(self.job, self.model)
        schedule = {"scheduler": schedule_of(self.job, optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def lightning(job: Job, epochs: int) -> Outcome:
    """Train by Lightning."""
    outcome, splits, model = Outcome(), read_splits(job), build(job)
    module = _Module(job, model, outcome)
    enter(model, job.phases[0])
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        validation = loader(job, splits["validation"])
        trainer.fit(module, loader(job, splits["train"], shuffled=True), validation)
        trainer.test(module, loader(job, splits["test"]), verbose=False)
    return finished(job, model, outcome, module.right / len(splits["test"]), epochs)
