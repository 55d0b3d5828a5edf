"""The same work by the Trainer of `transformers`."""

import tempfile
from typing import Any

import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from contest.by_hand import Outcome
from contest.inputs import Split, read_splits
from contest.job import Job, enter, optimizer_for, train
from contest.networks import build
from contest.peers import Batches, finished, loader, schedule_of


class _WithLoss(nn.Module):
    """A network that gives its own loss, as the Trainer wants it, frozen parts kept in `eval`."""

    def __init__(self, job: Job, model: nn.Module) -> None:
        super().__init__()
        self.model, self.job, self.epoch = model, job, 0

    def forward(self, labels: Tensor, **inputs: Any) -> dict[str, Tensor]:
        inputs.pop("num_items_in_batch", None)
        outputs = self.model(**inputs)
        return {"loss": F.cross_entropy(outputs, labels), "logits": outputs}

    def train(self, mode: bool = True) -> "_WithLoss":
        super().train(mode)
        if mode:
            train(self.model, self.job.phase_of(self.epoch))
        return self


class _Phases(transformers.TrainerCallback):
    """Thaws as phases begin, and notes the time as epochs end."""

    def __init__(self, job: Job, wrapped: _WithLoss, outcome: Outcome, epochs: int) -> None:
        self.job, self.wrapped, self.outcome, self.epochs = job, wrapped, outcome, epochs

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.wrapped.epoch = epoch = round(state.epoch)
        if self.job.begins(epoch):
            enter(self.wrapped.model, self.job.phase_of(epoch))

    def on_evaluate(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if len(self.outcome.epoch_ends) < self.epochs:
            self.outcome.epoch_is_over()


class _Trainer(transformers.Trainer):
    """The Trainer with batches in the order of the job."""

    def __init__(self, job: Job, splits: dict[str, Split], **arguments: Any) -> None:
        self.job, self.splits = job, splits
        super().__init__(train_dataset=Batches(splits["train"]), **arguments)

    def get_train_dataloader(self) -> Any:
        return loader(self.job, self.splits["train"], shuffled=True)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        batches: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        return loader(self.job, batches.split)


def trainer(job: Job, epochs: int) -> Outcome:
    """Train by the Trainer."""
    outcome, splits, model = Outcome(), read_splits(job), build(job)
    wrapped, optimizer = _WithLoss(job, model), optimizer_for(job, model)
    enter(model, job.phases[0])
    with tempfile.TemporaryDirectory() as folder:
        engine = _Trainer(
            job,
            splits,
            model=wrapped,
            args=_arguments(job, epochs, folder),
            eval_dataset=Batches(splits["validation"]),
            compute_metrics=_accuracy,
            callbacks=[_Phases(job, wrapped, outcome, epochs)],
            optimizers=(optimizer, schedule_of(job, optimizer)),
        )
        engine.remove_callback(transformers.PrinterCallback)
        engine.train()
        reached = engine.evaluate(Batches(splits["test"]))["eval_accuracy"]
    return finished(job, model, outcome, reached, epochs)


def _arguments(job: Job, epochs: int, folder: str) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=job.batch_size,
        per_device_eval_batch_size=job.batch_size,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        max_grad_norm=0.0,
    )


def _accuracy(found: Any) -> dict[str, float]:
    return {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())}
