"""How near an answer comes to its references: ROUGE and token F1, in points (0 to 100). Pure functions of texts."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

ROUGE = ("rouge1", "rouge2", "rougeL")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def rouge(prediction: str, references: Sequence[str], *, stemmer: bool = False) -> dict[str, float]:
    """F-measures of ROUGE-1, -2 and -L as package `rouge_score` computes them, and `rouge_per_answer`, their geometric mean.

    Of several references each of the three takes the one it is largest for, as in SQuALITY's and SCROLLS' evaluation; so
    the three may come from different references. SCROLLS compares words as they are, SQuALITY's authors stems.

    `rouge_per_answer` is no benchmark's score. What SCROLLS (arXiv 2201.03533, section 3) and ZeroSCROLLS, and so the
    paper, call ROUGE is the geometric mean of the three means over answers; the summary makes it of the rows, as `rouge`.
    """
    scorer = _scorer(stemmer)
    each = [scorer.score(reference, prediction) for reference in references]
    best = {kind: 100 * max(float(scores[kind].fmeasure) for scores in each) for kind in ROUGE}
    return {**best, "rouge_per_answer": (best["rouge1"] * best["rouge2"] * best["rougeL"]) ** (1 / 3)}


@cache
def _scorer(stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=stemmer)


def f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall after SQuAD's normalisation, the largest over the references.

    Two texts that share no token, be one of them empty, score 0, as in SQuAD 1.1's and QASPER's evaluation.
    """
    return 100 * max(_overlap(normal(prediction), normal(reference)) for reference in references)


def normal(text: str) -> list[str]:
    """SQuAD's tokens: lower case, no ASCII punctuation, no articles, split at white space."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _overlap(ours: list[str], theirs: list[str]) -> float:
    same = (Counter(ours) & Counter(theirs)).total()
    return 2 * same / (len(ours) + len(theirs)) if same else 0.0
