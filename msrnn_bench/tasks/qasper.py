"""Long-range understanding on QASPER (the paper, section 4.2 and Figures 5 and 11): a paper, a question, a short answer.

Where the paper is silent: the public validation set, greedy, the prompt in words of our own; an answer is one line.
"""

from __future__ import annotations

from dataclasses import dataclass

from msrnn_bench.errors import Count, Named
from msrnn_bench.tasks.writing.answering import Answering
from msrnn_bench.tasks.writing.scores import f1

PROMPT = (
    "{document}\n\nThe text above is a research paper. Reply to the question below in a few words, one sentence at most. "
    'Where the paper does not tell, reply "unanswerable"; to a question of yes or no, reply with one of "yes", "no" and '
    '"unanswerable" alone.\n\nQuestion:\n{question}\n\nAnswer:\n'
)


@dataclass(frozen=True, kw_only=True)
class Qasper(Answering):
    """Token F1, 0 to 100, the best over the references."""

    prompt: str = PROMPT
    new_tokens: Count = 64
    stop: tuple[Named, ...] = ("\n",)

    name = "qasper"

    def score(self, prediction: str, references: tuple[str, ...]) -> dict[str, float]:
        return {"f1": f1(prediction, references)}
