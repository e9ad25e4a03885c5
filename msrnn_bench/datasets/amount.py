"""How much text there is, told without a tokenizer: for a dry run. Knows no model."""

from msrnn_bench.datasets.texts import Dataset
from msrnn_bench.errors import NotHereError

CHARACTERS = 4  # of a token, about: where nothing but tokenising a whole text would tell


def amount(dataset: Dataset, *, context: int, documents: int | None, tokens: int | None) -> tuple[int, str] | None:
    """How many tokens chunks.py would cut, and how that was found: `at most` where `tokens` (packed: `documents`) bounds it,
    else `about`, by the characters. None where the text is not here and nothing is noted of it."""
    try:
        lengths = [len(document.text) for document in dataset.documents(documents)]
    except NotHereError:
        facts = getattr(dataset, "facts", None) or {}
        if not facts and (documents is None or tokens is None):
            return None
        count = int(facts.get("documents") or documents or 1)
        lengths = [int(facts.get("characters", 0)) // count] * min(count, documents or count)
    about = [length // CHARACTERS if tokens is None else tokens for length in lengths]
    if dataset.pack:
        whole = documents if documents is not None else sum(about) // context
    else:
        whole = sum(one // context for one in about)
    bound = documents if dataset.pack else tokens
    return whole * context, f"about, at {CHARACTERS} characters a token" if bound is None else "at most"
