"""The tokenizer in a folder for transformers."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.steps.tokenizing import Tokenize
from finetune.export.hub_inputs import Example, Reader, Rows, cannot_hold
from finetune.export.source import ExportSource


@dataclass(frozen=True, slots=True)
class HubTexts:
    """Texts, or pairs of them, that a tokenizer makes tokens of."""

    tokenize: Tokenize

    @classmethod
    def of(cls, source: ExportSource) -> "HubTexts":
        """Return the tokenizer of a run, whose only step it must be.

        Raises:
            FinetuneError: there are other steps, or none.
        """
        return cls(
            only_tokenize([planned.step for planned in source.predictor.preparing.steps.other])
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers in front of the network whose work it does: none."""
        return ()

    @property
    def about(self) -> str:
        """How it prepares samples, as the end of a sentence."""
        return f"its tokenizer cuts texts to {self.tokenize.max_length} tokens"

    @property
    def doubt(self) -> str | None:
        """Hint on samples that pipeline() may read otherwise than the run: there are none."""
        return None

    def write(self, module: Any, folder: Path, transformers: Any) -> None:
        """Write the tokenizer, which cuts texts where the run does."""
        # A copy: the predictor, which the export is compared with, goes on with its own.
        tokenizer = copy.deepcopy(self.tokenize.tokenizer)
        tokenizer.model_max_length = self.tokenize.max_length
        if tokenizer.pad_token is None and module.config.pad_token_id is not None:
            # A head of a decoder finds the end of a text by this token.
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(module.config.pad_token_id)
        tokenizer.save_pretrained(folder)

    def reader(self, folder: Path, transformers: Any) -> Reader:
        """Load the tokenizer from a folder."""
        where = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **where)

        def read(rows: Rows) -> list[dict[str, Any]]:
            if self.tokenize.prefix:
                # Several texts, tokenized singly: each goes through the same network.
                return [_tokens(tokenizer, [values]) for values in rows.values()]
            return [_tokens(tokenizer, [rows[name] for name in self.tokenize.columns])]

        return read

    def example(self, pipeline: str) -> Example:
        """Return code that calls a pipeline of this name."""
        pair = len(self.tokenize.columns) > 1
        text = '{"text": "A text.", "text_pair": "Another."}' if pair else '"A text."'
        # That pipeline takes no `truncation`: it cuts texts by itself.
        return Example(text if pipeline == "token-classification" else f"{text}, truncation=True")


def only_tokenize(steps: Sequence[Any]) -> Tokenize:
    """Return the step that makes tokens, if the steps of a run are that step alone.

    It may be there several times, for several texts, by one tokenizer and with one length.

    Raises:
        FinetuneError: there are other steps, or none, or they differ.
    """
    texts = [step for step in steps if isinstance(step, Tokenize)]
    others = [type(step).__name__ for step in steps if not isinstance(step, Tokenize)]
    # By name: one that two steps name is loaded twice.
    settings = {(step.max_length, step.tokenizer.name_or_path) for step in texts}
    if others or len(settings) != 1:
        what = f"the step {others[0]}" if others else "no single way to make tokens"
        raise cannot_hold(
            f"the run prepares its inputs by {what}, which the tokenizer of such a folder cannot"
        )
    return texts[0]


def _tokens(tokenizer: Any, texts: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return the tokens of texts, or of pairs of texts or of words."""
    words = not isinstance(texts[0][0], str)
    return dict(
        tokenizer(
            *(list(map(list if words else str, column)) for column in texts),
            truncation=True,
            padding=True,
            return_tensors="pt",
            is_split_into_words=words,
        )
    )
