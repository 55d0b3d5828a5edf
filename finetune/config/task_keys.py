"""`task:` what the network learns: losses, metrics, and the meaning of its outputs."""

from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, Tag, model_validator

from finetune.config.base import PUBLIC
from finetune.config.bounds import MAX_NAME_BYTES, MAX_PIXEL, Arguments
from finetune.config.loss_keys import (
    BinaryCrossEntropyLoss,
    ContrastiveLoss,
    CrossEntropyLoss,
    DiceLoss,
    ImportLoss,
    InBatchNegativesLoss,
    Loss,
    MseLoss,
    TripletLoss,
)
from finetune.config.metric_keys import (
    ANY_METRIC,
    METRIC,
    Better,
    DetectionMetric,
    Imported,
    ImportMetric,
    OfClasses,
    OfLabels,
    OfNumbers,
    PairMetric,
    RankMetric,
    ScoreMetric,
    SegmentationMetric,
    SpanMetric,
    TokenMetric,
)
from finetune.config.task_base import SEPARATOR, BaseTask, MeasuredTask, TargetForm

_Number = Annotated[float, Field(ge=-1e9, le=1e9)]
_Threshold = Annotated[float, Field(gt=0, lt=1)]


class ClassificationTask(MeasuredTask):
    """One of several classes per sample; outputs are logits `(B, C)`, or one logit `(B, 1)` for the second of two classes."""

    target_form: ClassVar[TargetForm] = "class"
    reads_logits: ClassVar[bool] = True
    usual_losses: ClassVar[tuple[Loss, ...]] = (CrossEntropyLoss(type="cross_entropy"),)

    type: Literal["classification"]
    """Discriminator."""
    metrics: tuple[Annotated[OfClasses, ANY_METRIC], ...] = ("accuracy",)
    """Metrics of every evaluation in addition to the loss. `f1`, `precision` and `recall` are means over classes. `{type: MatthewsCorrCoef}` names a class of torchmetrics, `{type: import}` one of your own. A metric that is not defined is left out, such as such a mean if a class has no sample."""
    per_class: bool = False
    """Whether `f1`, `precision` and `recall` are also given for each class, as `f1/CLASS`. That of a class without samples is left out."""
    threshold: _Threshold | Literal["auto"] | None = None
    """Probability from which on the second of two classes is predicted; None predicts the most probable class. `auto`: at the end of training it becomes the one with the best F1 of that class on the validation samples, which test, evaluation and prediction use; before that it is 0.5."""

    @property
    def learns_embeddings(self) -> bool:
        """Whether every loss compares embeddings, so that no output is about a class."""
        return all(isinstance(loss, TripletLoss | ContrastiveLoss) for loss in self.chosen_losses)


class MultilabelTask(MeasuredTask):
    """Any number of labels per sample; outputs are logits `(B, C)`."""

    target_form: ClassVar[TargetForm] = "labels"
    reads_logits: ClassVar[bool] = True
    usual_losses: ClassVar[tuple[Loss, ...]] = (
        BinaryCrossEntropyLoss(type="binary_cross_entropy"),
    )

    type: Literal["multilabel"]
    """Discriminator."""
    metrics: tuple[Annotated[OfLabels, ANY_METRIC], ...] = ("f1",)
    """Metrics of every evaluation in addition to the loss, as means over labels; `{type: FBetaScore, beta: 2}` names a class of torchmetrics. All but `accuracy` are left out if a label has no sample."""
    per_class: bool = False
    """Whether `f1`, `precision`, `recall` and `accuracy` are also given for each label, as `f1/LABEL`. That of a label without samples is left out."""
    threshold: _Threshold | Literal["auto"] = 0.5
    """Probability from which on a label is predicted. `auto`: at the end of training each label gets the one with its best F1 on the validation samples, which test, evaluation and prediction use; before that it is 0.5."""
    separator: str = Field(default=SEPARATOR, min_length=1)
    """Separator between two labels, if the target is text."""

    @property
    def chosen_separator(self) -> str | None:
        """Separator between two labels of a cell that the config names; None if it names none."""
        return self.separator if "separator" in self.model_fields_set else None


class TokenClassificationTask(MeasuredTask):
    """A class for each word of a text, such as tags of named entities; outputs are logits `(B, L, C)` over tokens. The first token of a word has the word's class, all others are left out of loss and metrics."""

    target_form: ClassVar[TargetForm] = "tags"
    reads_logits: ClassVar[bool] = True
    usual_losses: ClassVar[tuple[Loss, ...]] = (CrossEntropyLoss(type="cross_entropy"),)

    type: Literal["token_classification"]
    """Discriminator."""
    metrics: tuple[Annotated[Annotated[TokenMetric, Tag("name")] | Imported, METRIC], ...] = (
        "f1",
        "accuracy",
    )
    """Metrics of every evaluation in addition to the loss. `f1`, `precision` and `recall` count entities, all types together: one is right if its first word, last word and type are. They need classes such as `B-name`, `I-name` and `O`, and are left out if no text holds an entity. `accuracy` is the share of words with the right class."""
    per_class: bool = False
    """Whether `f1`, `precision` and `recall` are also given for each type of entity, as `f1/person`. That of a type without an entity is left out."""


class RegressionTask(MeasuredTask):
    """One or more numbers per sample; outputs and targets have the same shape. `(B, 1)` counts as `(B,)`."""

    target_form: ClassVar[TargetForm] = "numbers"
    usual_losses: ClassVar[tuple[Loss, ...]] = (MseLoss(type="mse"),)

    type: Literal["regression"]
    """Discriminator."""
    metrics: tuple[Annotated[OfNumbers, ANY_METRIC], ...] = ("mae",)
    """Metrics of every evaluation in addition to the loss; `{type: SpearmanCorrCoef}` names a class of torchmetrics. `r2` is left out if all targets are equal, and is the mean over several target columns."""
    per_output: bool = False
    """Whether each metric is also given for each of several target columns, as `mae/COLUMN`."""


class SegmentationTask(MeasuredTask):
    """One of several classes for each pixel; outputs are logits `(B, C, H, W)`, or one logit `(B, 1, H, W)` for the second of two classes. Logits of another size than the masks are resized bilinearly."""

    target_form: ClassVar[TargetForm] = "mask"
    reads_logits: ClassVar[bool] = True
    usual_losses: ClassVar[tuple[Loss, ...]] = (CrossEntropyLoss(type="cross_entropy"),)

    type: Literal["segmentation"]
    """Discriminator."""
    classes: tuple[Annotated[str, Field(min_length=1, max_length=MAX_NAME_BYTES)], ...] | None = (
        Field(default=None, min_length=2, max_length=MAX_PIXEL)
    )
    """Names of the classes: a pixel of number 0 is of the first, of 1 of the second. If left out, the numbers that the masks hold are the classes, and all masks are read when the run begins."""
    ignore_index: int | None = Field(default=255, ge=0, le=MAX_PIXEL)
    """Number of the pixels that are left out of losses and metrics; null if every pixel has a class."""
    metrics: tuple[
        Annotated[Annotated[SegmentationMetric, Tag("name")] | Imported, METRIC], ...
    ] = ("mean_iou",)
    """Metrics of every evaluation in addition to the loss. `mean_iou` and `dice` are means over the classes that a mask has; the others are told."""
    per_class: bool = False
    """Whether `mean_iou` and `dice` are also given for each class, as `iou/CLASS` and `dice/CLASS`. That of a class that no mask has is left out."""

    @property
    def named_classes(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of their numbers, if the config names them."""
        return self.classes

    @property
    def ignored_number(self) -> int | None:
        """Number of the pixels that are left out of losses and metrics; None without any."""
        return self.ignore_index

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> Self:
        names = self.classes or ()
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two classes are called {twice!r}")
        if self.ignore_index is not None and self.ignore_index < len(names):
            raise ValueError(
                f"ignore_index {self.ignore_index} is the number of class "
                f"{names[self.ignore_index]!r}; null leaves no pixel out"
            )
        return self

    @model_validator(mode="after")
    def _losses_take_masks(self) -> Self:
        for loss in self.losses or ():
            if not isinstance(loss, CrossEntropyLoss | DiceLoss | ImportLoss):
                raise ValueError(f"loss {loss.type!r} takes no masks; cross_entropy and dice do")
        return self


class DetectionTask(MeasuredTask):
    """Boxes in an image, each with a class. The network is one of torchvision's detectors (`output: boxes`), which computes its own losses, in training alone: `validation/loss` is absent."""

    target_form: ClassVar[TargetForm] = "boxes"
    usual_losses: ClassVar[tuple[Loss, ...]] = ()

    type: Literal["detection"]
    """Discriminator."""
    metrics: tuple[DetectionMetric, ...] = Field(default=("map", "map_50"), min_length=1)
    """Metrics of every evaluation, as COCO counts them: `map` is the mean average precision over overlaps from 0.5 to 0.95, `map_50` and `map_75` that of one overlap, `map_small`, `map_medium` and `map_large` of boxes below 32², up to and above 96² pixels of the network's input, `mar_1`, `mar_10` and `mar_100` the recall with so many detections an image."""
    threshold: _Threshold = 0.5
    """Probability from which on a box is predicted; metrics count all boxes."""

    @model_validator(mode="after")
    def _losses_are_of_the_network(self) -> Self:
        if self.losses is not None:
            raise ValueError("a detector brings its own losses; leave 'losses' out")
        return self


class SimilarityTask(MeasuredTask):
    """How much samples are alike, by the cosine of their embeddings; outputs are the embeddings of a pair `(B, 2, D)` or of a triplet `(B, 3, D)`, as a layer `stack` gives them."""

    target_form: ClassVar[TargetForm] = "numbers"
    usual_losses: ClassVar[tuple[Loss, ...]] = ()

    type: Literal["similarity"]
    """Discriminator."""
    compares: Literal["scores", "pairs", "triplets"] = "scores"
    """`scores`: pairs with a number, which their cosine shall be. `pairs`: pairs that belong together, without a target. `triplets`: a sample, one like it, and one that is not, without a target."""
    score_range: tuple[_Number, _Number] | None = None
    """Least and greatest score, such as [0, 5]: these are learnt as cosine 0 and 1. If left out, scores are cosines, from -1 to 1; from 0 to 1 for the loss `contrastive`."""
    metrics: tuple[Annotated[Annotated[PairMetric, Tag("name")] | Imported, METRIC], ...] | None = (
        None
    )
    """Metrics of every evaluation in addition to the loss. Of scores: `spearman` (the usual one) and `pearson`, the correlation of cosines and scores. Of pairs: `mrr` (the usual one) and `recall@1`, `recall@3`, `recall@5`, `recall@10`, `recall@100`, by the rank of each sample's partner among the partners of all evaluated pairs. Of triplets these too, and `triplet_accuracy` (the usual one), the share of samples nearer to their like."""

    @property
    def learns(self) -> TargetForm:
        """Form of its target; only scores are a target."""
        return self.target_form if self.compares == "scores" else "nothing"

    @property
    def target_bounds(self) -> tuple[float, float] | None:
        """Least and greatest score."""
        has_labels = any(isinstance(loss, ContrastiveLoss) for loss in self.losses or ())
        return self.score_range or ((0.0, 1.0) if has_labels else (-1.0, 1.0))

    @property
    def chosen_losses(self) -> tuple[Loss, ...]:
        """The losses of the config, or the usual one of what it compares."""
        of_scores = self.compares == "scores"
        usual: Loss = (
            MseLoss(type="mse") if of_scores else InBatchNegativesLoss(type="in_batch_negatives")
        )
        return self.losses or (usual,)

    @property
    def chosen_metrics(self) -> tuple[PairMetric | ImportMetric, ...]:
        """The metrics of the config, or the usual one of what it compares."""
        return (_METRICS_OF[self.compares][0],) if self.metrics is None else self.metrics

    @model_validator(mode="after")
    def _all_suits_what_it_compares(self) -> Self:
        there = f"compares: {self.compares}"
        losses = _LOSSES_OF[self.compares]
        for loss in self.losses or ():
            if loss.type not in losses:
                raise ValueError(
                    f"loss {loss.type!r} does not suit {there}; {', '.join(losses)} do"
                )
        for metric in self.metrics or ():
            metrics = _METRICS_OF[self.compares]
            if isinstance(metric, str) and metric not in metrics:
                raise ValueError(f"metric {metric!r} is not of {there}; {', '.join(metrics)} are")
        if self.score_range is not None:
            if self.compares != "scores":
                raise ValueError(f"score_range is of scores, and there are none with {there}")
            if self.score_range[0] >= self.score_range[1]:
                raise ValueError(f"score_range begins below its end, got {[*self.score_range]}")
        return self


_LOSSES_OF = {
    "scores": ("mse", "l1", "huber", "contrastive", "import"),
    "pairs": ("in_batch_negatives", "import"),
    "triplets": ("in_batch_negatives", "triplet", "import"),
}
"""Losses by what `similarity` compares."""
_METRICS_OF: dict[str, tuple[PairMetric, ...]] = {
    "scores": get_args(ScoreMetric),
    "pairs": get_args(RankMetric),
    "triplets": ("triplet_accuracy", *get_args(RankMetric)),
}
"""Metrics by what `similarity` compares; the usual one first."""


class SpanTask(MeasuredTask):
    """The answer to a question, which is a part of a text; outputs are logits `(B, L, 2)` of each token as the first and as the last one of the answer. `data.inputs` names question and text, in this order. `data.target` names a column of answers as SQuAD has them, `{"text": [...], "answer_start": [...]}`, or two columns: the answer, and at which character of the text it begins. Of several answers the first is learnt, and each counts as right. A text that does not fit in `max_length` of `tokenize` is cut into windows that overlap; each window is a sample."""

    target_form: ClassVar[TargetForm] = "span"
    reads_logits: ClassVar[bool] = True
    usual_losses: ClassVar[tuple[Loss, ...]] = (CrossEntropyLoss(type="cross_entropy"),)

    type: Literal["span"]
    """Discriminator."""
    may_be_unanswered: bool = False
    """Whether a question may have no answer, as in SQuAD 2: its list of answers, or its cell, is empty. The network learns the first token as its answer, and where that token is more probable than any answer, none is predicted. Without this key a question without an answer is refused."""
    longest_answer: Annotated[int, Field(ge=1, le=10_000)] = 30
    """Most tokens of a predicted answer. Longer answers are learnt all the same."""
    stride: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Least number of tokens that two neighbouring windows of a text have in common; a third of those that a window has room for if left out. An answer that is whole in no window is not learnt, and told."""
    metrics: tuple[Annotated[Annotated[SpanMetric, Tag("name")] | Imported, METRIC], ...] = (
        "f1",
        "exact_match",
    )
    """Metrics of every evaluation in addition to the loss, as the script of SQuAD computes them, but from 0 to 1: `exact_match` is the share of questions whose answer is right apart from case, punctuation and articles; `f1` is the mean F1 of the words of an answer. Of several right answers the one counts that gives the best figure. All windows of a text together give one answer."""

    @model_validator(mode="after")
    def _losses_take_places(self) -> Self:
        for loss in self.losses or ():
            if not isinstance(loss, CrossEntropyLoss | ImportLoss):
                raise ValueError(f"loss {loss.type!r} takes no answers; cross_entropy does")
            if isinstance(loss, CrossEntropyLoss) and (loss.class_weights or loss.label_smoothing):
                raise ValueError(
                    "class_weights and label_smoothing are for classes; an answer has none"
                )
        return self


class ImportTask(BaseTask):
    """The user's own task, from a package named by `--trust`."""

    target_form: ClassVar[TargetForm] = "any"
    usual_losses: ClassVar[tuple[Loss, ...]] = ()

    type: Literal["import"]
    """Discriminator."""
    path: Annotated[str, PUBLIC]
    """`my_pkg.tasks:make`: returns an object with `loss(outputs, batch)` and `metrics`. `loss` returns per-sample losses `(B,)`, a sum and a count, or one number with `whole_window = True`, as for an imported loss. `soft_targets = True` says that it takes shares of classes `(B, C)`, which mixup and cutmix make. `metrics` maps names to a `torchmetrics.Metric` that gets `(outputs, batch)` if the second argument of its `update` is called `batch`, or if the data has no target; else `(outputs, target)`. A method `read(outputs)` returns a dict of plain values for each sample, which predictions are written from; without it outputs are read as classes or numbers."""
    args: Arguments = Field(default_factory=dict)
    """Keyword arguments of the call."""
    better: dict[str, Better] = Field(default_factory=dict)
    """Direction in which its metrics improve, by name; as their classes say (`higher_is_better`) if left out."""

    @property
    def has_own_loss(self) -> bool:
        """True: the whole task is the user's code."""
        return True

    @model_validator(mode="after")
    def _brings_its_own_loss(self) -> Self:
        if self.losses is not None:
            raise ValueError("the imported task brings its own loss; leave 'losses' out")
        return self


Task = Annotated[
    ClassificationTask
    | MultilabelTask
    | TokenClassificationTask
    | RegressionTask
    | SegmentationTask
    | DetectionTask
    | SimilarityTask
    | SpanTask
    | ImportTask,
    Field(discriminator="type"),
]
