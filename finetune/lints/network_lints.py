"""Notes on a network that does not suit its task or data, found by running a few samples.

None of them is an error: such a network runs, but learns less than it could.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from finetune.config.freeze import FreezeConfig, MethodByDepth
from finetune.config.model import Layer, TransformersLayer
from finetune.config.run import RunConfig
from finetune.config.selectors import ByDepth, Not, Selector
from finetune.config.task_keys import Task as TaskConfig
from finetune.config.task_list_keys import TaskList
from finetune.data.batches import Samples
from finetune.errors import FinetuneError, Key
from finetune.freezing.lints import Lint
from finetune.lints.losses_in_company import losses_in_company
from finetune.lints.mixed_samples import FEW as MANY, FEWER, may_mix, mixed_samples
from finetune.lints.out_of_reach import out_of_reach
from finetune.lints.repeated_blocks import repeated_blocks
from finetune.lints.squashed_logits import FEW, squashed_before
from finetune.lints.state_elsewhere import state_elsewhere
from finetune.lints.subject import Subject
from finetune.lints.unseen_tokens import blind_first_tokens, seen_padding
from finetune.models.declared import Network
from finetune.models.shapes import first_line
from finetune.preserved import preserved
from finetune.tasks.task import Task

_MANY_TARGETS = 64
"""Samples whose targets are compared with what the network can give."""


def lints_of_network(
    config: RunConfig, model: Network, task: Task, samples: Samples, device: torch.device
) -> tuple[Lint, ...]:
    """Return notes on a network that does not suit its task, its data or its freezing.

    They are about: a layer whose output goes nowhere, a squashing function before a loss on logits,
    outputs that are resized, a layer that sees padding or other samples, a first token that sees no
    other token, targets that no output can reach, blocks with shared weights where the config
    counts depth, a loss that compares the samples of a pass without `whole_window = True`, and
    weights or state of a layer of the user's own that are no parameters or buffers.

    Buffers, attributes, random state and mode of the network are restored.

    Args:
        config: The run config.
        model: The network.
        task: The task.
        samples: The training samples.
        device: Device of the network.
    """
    subject = Subject(config, model, task, samples, device)
    with preserved(model, buffers=True, attributes=True, random=config.seed), torch.no_grad():
        model.eval()
        return tuple(lint for what in _LOOKS for lint in _found_by(what, subject))


def _found_by(what: str, subject: Subject) -> list[Lint]:
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


def _unread(subject: Subject) -> Iterator[Lint]:
    """Yield a note for each layer whose output goes nowhere."""
    for name in subject.model.unread:
        key, _ = subject.layer(name)
        yield Lint(
            key,
            f"layer {name!r}: no layer takes its output, and it is no output of the network, so it "
            "learns nothing",
            "name it in the inputs of a layer, or leave it out",
        )


def _squashed_logits(subject: Subject) -> Iterator[Lint]:
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


def _out_of_reach(subject: Subject) -> Iterator[Lint]:
    """Yield a note if numbers to learn lie beyond what the last function can give."""
    task = subject.config.task
    is_plain = not isinstance(task, TaskList) and task.learns == "numbers"
    if not is_plain or task.has_own_loss or type(subject.model.last_layer) is nn.Linear:
        return
    batch = subject.batch(_MANY_TARGETS)
    few = subject.batch(FEW)
    if batch.target is None or len(few) < FEW:
        return
    if (found := out_of_reach(subject.model, few.inputs, batch.target)) is not None:
        key, _ = subject.layer(found.module)
        yield Lint(
            key,
            f"{subject.label(found.module)} {found.told}",
            "end the network with the layer before it, or bring the numbers to that range",
        )


def _remarks(subject: Subject) -> Iterator[Lint]:
    """Yield a note if the task has something to say of how outputs meet targets."""
    remark = subject.task.remark
    if remark is None:
        return
    batch = subject.batch(1)
    if (told := remark(subject.model(**batch.inputs), batch)) is not None:
        yield Lint(("model", "layers"), told, "predictions get the size of each input")


def _padding(subject: Subject) -> Iterator[Lint]:
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


def _mixed_samples(subject: Subject) -> Iterator[Lint]:
    """Yield a note if the output for a sample depends on the others of its batch."""
    if not may_mix(subject.config.model.layers) or len(subject.samples) < MANY:
        return
    rows = torch.arange(MANY)
    extent = subject.samples.extent(rows)
    length = None if extent is None else extent.width
    # Both are padded alike: a change by padding is another finding.
    batches = (subject.fetched(part, length).inputs for part in (rows, rows[-FEWER:]))
    if (mixed := mixed_samples(subject.model, *batches)) is None:
        return
    key, _ = subject.layer(mixed.module)
    who = subject.label(mixed.module) if mixed.module else "the network"
    yield Lint(
        key,
        f"{who} mixes the samples of a batch: the output for a sample changes by "
        f"{mixed.change:.1%} with the others beside it, so predictions depend on their company",
        "the first axis holds the samples: dim: 1 or -1 is one of their own, and torch's recurrent "
        "and attention layers need batch_first=True",
    )


def _blind_tokens(subject: Subject) -> Iterator[Lint]:
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


def _shared_depth(subject: Subject) -> Iterator[Lint]:
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
    elif isinstance(freeze, MethodByDepth):
        yield ("freeze", "method"), f"method {freeze.method!r}"
    if config.optimizer.layer_decay is not None:
        yield ("optimizer", "layer_decay"), "layer_decay"


def _is_by_depth(node: Selector) -> bool:
    """Tell whether a selector, or what is below its `not`, selects by depth."""
    return isinstance(node.not_ if isinstance(node, Not) else node, ByDepth)


_LOOKS: dict[str, Callable[[Subject], Iterator[Lint]]] = {
    "whether each layer is read": _unread,
    "whether outputs are logits": _squashed_logits,
    "whether targets can be reached": _out_of_reach,
    "how outputs meet the targets": _remarks,
    "whether layers see padding": _padding,
    "whether layers mix samples": _mixed_samples,
    "whether a first token sees the others": _blind_tokens,
    "whether blocks share their weights": _shared_depth,
    "whether a loss compares samples": losses_in_company,
    "whether state lies where no checkpoint finds it": state_elsewhere,
}
"""The examinations of a network, each by the question that it answers."""
