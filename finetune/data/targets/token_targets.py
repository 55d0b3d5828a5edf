"""Targets that are made of tokens where a batch is gathered."""

from finetune.data.targets.answer_places import AnswerPlaces
from finetune.data.targets.word_tags import WordTags

TokenTarget = WordTags | AnswerPlaces
"""Targets whose values depend on where a tokenizer cuts a text."""
