"""How right an answer is: exact match and F1 of SQuAD.

Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (2016,
arXiv:1606.05250), section 6.1, as the script `evaluate-v2.0.py` of SQuAD computes them.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class AnswerScore(NamedTuple):
    """How right one answer is, from 0 to 1."""

    f1: float
    exact_match: float


def score_of(said: str, right: Sequence[str]) -> AnswerScore:
    """Return how right a predicted answer is: the best figure over all right answers.

    Args:
        said: The predicted answer; empty for none.
        right: All right answers; empty if there is none, which only an empty answer says.
    """
    # As in that script: an answer of nothing but articles and punctuation is no answer.
    given = [right_one for right_one in right if normalised(right_one)] or [""]
    return AnswerScore(
        max(f1(said, one) for one in given), max(exact_match(said, one) for one in given)
    )


def normalised(answer: str) -> str:
    """Return an answer in lower case without punctuation, articles, and blanks too many."""
    # In this order, as there: "U.S.A." holds an article as long as it has its full stops.
    plain = answer.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(said: str, right: str) -> float:
    """Return 1 if two answers are the same once normalised, else 0."""
    return float(normalised(said) == normalised(right))


def f1(said: str, right: str) -> float:
    """Return the F1 of the words of a predicted answer, given the right one.

    2 P R / (P + R), where P and R are the shares of predicted and right words that both have; a
    word counts as often as it occurs. If an answer has no word: 1 if the other has none, else 0.
    """
    first, second = normalised(said).split(), normalised(right).split()
    if not first or not second:
        return float(first == second)
    common = (Counter(first) & Counter(second)).total()
    return 2 * common / (len(first) + len(second))
