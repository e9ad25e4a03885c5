"""Long-range understanding on SQuALITY (the paper, section 4.2 and Figures 4 and 10): a story, a question, a paragraph.

Where the paper is silent: the public development set, greedy, the prompt in words of our own. It ends in a line end, for
behind a bare `Answer:` SmolLM2 often ends at once. For the scores see scores.rouge.
"""

from __future__ import annotations

from dataclasses import dataclass

from msrnn_bench.errors import UsageError
from msrnn_bench.tasks.writing.answering import Answering
from msrnn_bench.tasks.writing.scores import rouge

PROMPT = (
    "{document}\n\nThe text above is a story. Write one paragraph that answers the following question about it.\n\n"
    "Question:\n{question}\n\nAnswer:\n"
)


@dataclass(frozen=True, kw_only=True)
class Squality(Answering):
    """ROUGE-1, -2 and -L of each answer, 0 to 100; the summary makes `rouge` of their means. `stemmer` compares stems."""

    prompt: str = PROMPT
    new_tokens: int = 256
    stemmer: bool = False

    name = "squality"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.stemmer, bool):
            raise UsageError(f"task.stemmer={self.stemmer} must be true or false")

    def score(self, prediction: str, references: tuple[str, ...]) -> dict[str, float]:
        return rouge(prediction, references, stemmer=self.stemmer)
