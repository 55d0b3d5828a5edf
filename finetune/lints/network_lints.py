"""Notes on a network that does not suit its task or data, found by running a few samples.

None of them is an error: such a network runs, but learns less than it could.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune.config.freeze import ChainThaw, FreezeConfig, Freezeout, Gradual, TopK, Ulmfit
from finetune.config.loss_keys import ImportLoss
from finetune.config.model import Layer, TransformersLayer
from finetune.config.run import RunConfig
from finetune.config.selectors import ByDepth, Not, Selector
from finetune.config.task_keys import ImportTask, Task as TaskConfig
from finetune.config.task_list_keys import AnyTask, TaskList
from finetune.data.batches import Batch, Samples
from finetune.errors import FinetuneError, Key
from finetune.freezing.lints import Lint
from finetune.lints.repeated_blocks import repeated_blocks
from finetune.lints.squashed_logits import FEW, squashed_before
from finetune.lints.unseen_tokens import blind_first_tokens, seen_padding
from finetune.models.declared import Network
from finetune.models.layer_calls import is_helper_of
from finetune.models.shapes import first_line
from finetune.preserved import preserved
from finetune.tasks.losses import WeightedLoss
from finetune.tasks.task import Task

_BY_DEPTH = (Gradual, Ulmfit, ChainThaw, TopK, Freezeout)
"""Methods that freeze by the depth of blocks."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """The network under examination, in evaluation mode, with its task and data."""

    config: RunConfig
    model: Network
    task: Task
    samples: Samples
    device: torch.device

    def batch(self, count: int, length: int | None = None) -> Batch:
        """Return the first `count` samples, or all if there are fewer."""
        return self.fetched(torch.arange(min(count, len(self.samples))), length)

    def fetched(self, rows: Tensor, length: int | None = None) -> Batch:
        """Return the samples at `rows`."""
        return self.samples.fetch(rows, length=length).to(self.device)

    def placed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the columns on the device of the network."""
        return {name: values.to(self.device) for name, values in inputs.items()}

    def label(self, module: str) -> str:
        """Return the words for a module in a message."""
        return f"layer {module!r} ({type(self.model.get_submodule(module)).__name__})"

    def layer(self, module: str) -> tuple[Key, Layer | None]:
        """Return key and node of the config's layer that a module lies in."""
        child = module.partition(".")[0]
        named = {node.name or str(n): n for n, node in enumerate(self.config.model.layers)}
        # Helpers of a layer, such as pooling, are modules of their own beside it.
        position = named.get(child)
        if position is None:
            position = next((n for name, n in named.items() if is_helper_of(name, child)), None)
        if position is not None:
            return ("model", "layers", position), self.config.model.layers[position]
        return ("model", "layers"), None


def lints_of_network(
    config: RunConfig, model: Network, task: Task, samples: Samples, device: torch.device
) -> tuple[Lint, ...]:
    """Return notes on a network that does not suit its task, its data or its freezing.

    They are about: a squashing function before a loss on logits, outputs that are resized, a
    layer that sees padding, a first token that sees no other token, blocks with shared weights
    where the config counts depth, and a loss that compares the samples of a pass without
    `whole_window = True`.

    Buffers, attributes, random state and mode of the network are restored.

    Args:
        config: The run config.
        model: The network.
        task: The task.
        samples: The training samples.
        device: Device of the network.
    """
    subject = _Subject(config, model, task, samples, device)
    with preserved(model, buffers=True, attributes=True, random=config.seed), torch.no_grad():
        model.eval()
        return tuple(lint for what in _LOOKS for lint in _found_by(what, subject))


def _found_by(what: str, subject: _Subject) -> list[Lint]:
    """Return the notes of one examination, or a note that the network raised in it."""
    try:
        return list(_LOOKS[what](subject))
    except Exception as error:  # noqa: BLE001 - the user's own code may make anything of such a batch
        # The network does not run as in training here: more padding, other tokens, zeros in
        # between. An error over these is no fault of the run.
        reason = f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, FinetuneError):
            reason = error.message
        return [
            Lint(
                ("model", "layers"),
                f"not looked at: {what}; the network, run otherwise than in training, raises "
                f"{reason}",
                "the run itself is not concerned: training and evaluation do not run it so",
            )
        ]


def _squashed_logits(subject: _Subject) -> Iterator[Lint]:
    """Yield a note for each task that reads logits from behind a squashing function."""
    # To run a pretrained network only to see that its head is linear takes a while.
    if type(subject.model.last_layer) is nn.Linear:
        return
    task = subject.config.task
    readers: list[tuple[TaskConfig, str | None]]
    if isinstance(task, TaskList):
        readers = [(one, one.output) for one in task.tasks]
    else:
        readers = [(task, None)]
    for one, output in readers:
        if len(subject.samples) < 2:
            return
        found = squashed_before(one, subject.model, subject.batch(FEW).inputs, output)
        if found is not None:
            key, _ = subject.layer(found.module)
            yield Lint(
                key,
                f"{subject.label(found.module)} {found.told}",
                "end the network with the layer before it: predictions are turned into "
                "probabilities anyway",
            )


def _remarks(subject: _Subject) -> Iterator[Lint]:
    """Yield a note if the task has something to say of how outputs meet targets."""
    remark = subject.task.remark
    if remark is None:
        return
    batch = subject.batch(1)
    if (told := remark(subject.model(**batch.inputs), batch)) is not None:
        yield Lint(("model", "layers"), told, "predictions get the size of each input")


def _padding(subject: _Subject) -> Iterator[Lint]:
    """Yield a note if the output for a sample changes with the padding behind it."""
    if not _may_see_padding(subject.config.model.layers):
        return
    seen = seen_padding(subject.model, subject.samples, subject.placed)
    if seen is None:
        return
    key, _ = subject.layer(seen.module)
    has_mask = "attention_mask" in subject.samples.inputs
    yield Lint(
        key,
        f"{subject.label(seen.module)} sees padding: the output for a sample of {seen.tokens} "
        f"tokens changes by {seen.change:.1%} where it is filled up to {seen.filled_up_to}",
        "a layer of your own (type: import) that takes "
        f"{'attention_mask' if has_mask else 'the lengths'} can leave padding out: by "
        "pack_padded_sequence, by key_padding_mask, or by zeros in its place",
    )


def _may_see_padding(layers: Sequence[Layer]) -> bool:
    """Tell whether tokens reach a layer that may ignore padding.

    Networks of `transformers` mask padding themselves; layers behind a pooled one see no tokens.
    """
    if not isinstance(layers[0], TransformersLayer):
        return True
    names = {layer.name or str(position) for position, layer in enumerate(layers)}
    return any(
        layer.output == "hidden"
        if isinstance(layer, TransformersLayer)
        # What is no layer is a column: a second branch may take the tokens themselves.
        else any(name.partition(".")[0] not in names for name in layer.inputs or ())
        for layer in layers
    )


def _blind_tokens(subject: _Subject) -> Iterator[Lint]:
    """Yield a note if `output: cls` takes the first token of a decoder, which sees only itself."""
    for module in blind_first_tokens(subject.model, subject.batch(2).inputs):
        key, node = subject.layer(module)
        name = module.removesuffix("_cls")
        yield Lint(
            (*key, "output") if node is not None else key,
            f"output: cls takes the first token of {subject.label(name)}, which sees no token "
            "after it: texts that begin alike are all the same to the network",
            "output: last takes the last one, output: mean takes all tokens",
        )


def _shared_depth(subject: _Subject) -> Iterator[Lint]:
    """Yield a note if the config counts depth, and a block with shared weights runs repeatedly."""
    uses = list(_uses_of_depth(subject.config))
    if not uses:
        return
    for module, count in repeated_blocks(subject.model, subject.batch(2).inputs).items():
        # One note is enough, at the first key that counts depth.
        key, what = uses[0]
        yield Lint(
            key,
            f"{what} goes by depth, and {subject.label(module)} runs {count} times in a row with "
            "the same weights: depth counts it once, and these runs cannot be told apart",
            f"freeze and thaw it as a whole: {module!r}",
        )


def _uses_of_depth(config: RunConfig) -> Iterator[tuple[Key, str]]:
    """Yield the config keys that count depth, with the words for them."""
    freeze = config.freeze
    if isinstance(freeze, FreezeConfig):
        for number, phase in enumerate(freeze.phases):
            for field in ("freeze", "train"):
                for place, node in enumerate(getattr(phase, field) or ()):
                    if _is_by_depth(node):
                        yield ("freeze", "phases", number, field, place), "a selector"
    elif isinstance(freeze, _BY_DEPTH):
        yield ("freeze", "method"), f"method {freeze.method!r}"
    if config.optimizer.layer_decay is not None:
        yield ("optimizer", "layer_decay"), "layer_decay"


def _is_by_depth(node: Selector) -> bool:
    """Tell whether a selector, or what is below its `not`, selects by depth."""
    return isinstance(node.not_ if isinstance(node, Not) else node, ByDepth)


def _losses_in_company(subject: _Subject) -> Iterator[Lint]:
    """Yield a note if the loss of a sample changes with the other samples of its pass."""
    own = [(n, loss) for n, loss in enumerate(subject.task.losses) if _is_undeclared(subject, n)]
    if not own or len(subject.samples) < FEW:
        return
    # Both batches are padded alike: else the outputs may differ by their padding.
    extent = subject.samples.extent(torch.arange(FEW))
    length = None if extent is None else extent.width
    rows = torch.arange(FEW)
    together, *halves = (
        _Passed(batch, subject.model(**batch.inputs))
        for batch in (subject.fetched(part, length) for part in (rows, *rows.chunk(2)))
    )
    for number, loss in own:
        if not _changes(loss, together, halves):
            continue
        yield Lint(
            _key_of_loss(subject.config.task, number),
            f"loss {loss.name!r} of a sample changes with the others of its pass, and windows are "
            "cut into passes by train.micro_batch, or where memory runs out",
            "set the attribute whole_window = True on the loss: then no window is ever cut",
        )


_LOOKS: dict[str, Callable[[_Subject], Iterator[Lint]]] = {
    "whether outputs are logits": _squashed_logits,
    "how outputs meet the targets": _remarks,
    "whether layers see padding": _padding,
    "whether a first token sees the others": _blind_tokens,
    "whether blocks share their weights": _shared_depth,
    "whether a loss compares samples": _losses_in_company,
}
"""The examinations of a network, each by the question that it answers."""


def _key_of_loss(task: AnyTask, number: int) -> Key:
    """Return the key of the path of an imported loss; `number` is its place among all losses."""
    if isinstance(task, ImportTask):
        return ("task", "path")
    if not isinstance(task, TaskList):
        return ("task", "losses", number, "path")
    place = [n for n, one in enumerate(task.tasks) for _ in one.chosen_losses][number]
    before = sum(len(other.chosen_losses) for other in task.tasks[:place])
    return ("task", "tasks", place, "losses", number - before, "path")


def _is_undeclared(subject: _Subject, number: int) -> bool:
    """Tell whether a loss is imported and has no `whole_window = True`."""
    task = subject.config.task
    if not task.has_own_loss:
        return False
    is_own = isinstance(task, ImportTask) or isinstance(task.chosen_losses[number], ImportLoss)
    return is_own and not subject.task.losses[number].whole_window


class _Passed(NamedTuple):
    """A batch and what the network gives for it."""

    batch: Batch
    outputs: Any


def _changes(loss: WeightedLoss, together: _Passed, halves: Sequence[_Passed]) -> bool:
    """Tell whether the loss over some samples differs from that over their halves.

    Compared are the losses of the samples, or the sums if the loss gives a sum and a count.
    """
    whole, *apart = (loss(each.outputs, each.batch) for each in (together, *halves))
    if not whole.is_own:
        of_each, *of_halves = (
            loss.function(*loss.seen(each.outputs, each.batch)) for each in (together, *halves)
        )
        return _differ(of_each, torch.cat(of_halves))
    return _differ(whole.total, torch.stack([half.total for half in apart]).sum())


def _differ(one: Tensor, other: Tensor) -> bool:
    """Tell whether numbers differ by more than batches of another size may round."""
    return not torch.allclose(one, other, rtol=1e-3, atol=1e-5)
