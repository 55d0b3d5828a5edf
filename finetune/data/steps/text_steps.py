"""Which texts a config tokenizes, singly or as a pair, and the steps that do it."""

from collections.abc import Sequence

from finetune.config.transform_keys import TokenizeTransform, Transform, named_columns
from finetune.data.cells import infer
from finetune.data.samples import Prepared
from finetune.data.steps.loaded_tokenizer import load_tokenizer
from finetune.data.steps.tokenizing import Tokenize
from finetune.data.table import Listed
from finetune.errors import DataError, Key, named
from finetune.models.preprocessing import Preprocessing


def is_text(column: Prepared) -> bool:
    """Tell whether a column is text, and not numbers in a csv file."""
    if not isinstance(column, Listed) or column.kind == "things":
        return False
    # Cells of a csv are open until here: a column of digits is numbers.
    return column.kind in ("text", "words", "context") or isinstance(infer(column), Listed)


def tokenized_singly(texts: Sequence[str], preprocessing: Preprocessing) -> list[str]:
    """Return those of several text columns that layers name, and that make no pair therefore."""
    return [name for name in texts if name in preprocessing.named] if len(texts) > 1 else []


def nodes_for_each(
    node: Transform, texts: Sequence[str], singly: Sequence[str]
) -> Sequence[Transform]:
    """Return the nodes that a node stands for: one for each text that is tokenized singly.

    Only `tokenize` without a column stands for more than itself.
    """
    if not isinstance(node, TokenizeTransform) or not singly or named_columns(node):
        return [node]
    left = [name for name in singly if name in texts]
    rest = [] if left and len(left) == len(texts) else [node]
    return [*(node.model_copy(update={"column": name}) for name in left), *rest]


def text_or_pair(texts: Sequence[str], key: Key) -> tuple[str, ...]:
    """Return the only text column, or both of a pair.

    Raises:
        DataError: there are more than two.
    """
    if len(texts) > 2:
        raise DataError(
            f"{len(texts)} columns hold text, {named(texts)}: a tokenizer takes one, or a pair",
            hint="name those that belong together: {type: tokenize, columns: "
            f"[{texts[0]}, {texts[1]}]}}, and leave the others out of data.inputs; or name each "
            "text in the inputs of a layer",
            key=key,
        )
    return tuple(texts)


def columns_to_tokenize(
    node: TokenizeTransform, columns: Sequence[str], texts: Sequence[str], key: Key
) -> tuple[str, ...]:
    """Return the columns that a node names; else the text columns; else the first column."""
    return named_columns(node) or text_or_pair(texts, key) or (columns[0],)


def tokenize_step(
    node: TokenizeTransform,
    columns: tuple[str, ...],
    preprocessing: Preprocessing,
    key: Key,
    prefix: str,
) -> Tokenize:
    """Return the step that tokenizes columns, with the tokenizer that config or network names."""
    # A text that is tokenized singly is that of the network that takes it.
    own = preprocessing.named.get(columns[0]) if prefix else None
    name = node.tokenizer or own or preprocessing.tokenizer
    if name is None:
        place = preprocessing.no_tokenizer
        cause = "no transformers layer to take the tokenizer from"
        raise DataError(
            cause if place is None else f"{place!r} holds no tokenizer for {named(columns)}",
            hint="name one: data.transforms: [{type: tokenize, tokenizer: ...}], a folder or an id "
            "of the hub",
            key=key,
        )
    tokenizer = load_tokenizer(name, key)
    pads = node.padding == "max_length"
    return Tokenize(columns, node.max_length, pads, tokenizer, key, prefix=prefix)
