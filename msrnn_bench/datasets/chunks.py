"""Documents to chunks of exactly `context` tokens. Knows a tokenizer only as something to call, and no file.

The end of a text that does not fill a chunk is dropped: every number is measured at full context.
"""

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from msrnn_bench.errors import UsageError

if TYPE_CHECKING:
    from msrnn_bench.datasets.texts import Dataset

# How a text's end is read may depend on what follows it, so ids this near to the end of a cut text are not used.
MARGIN = 256


@dataclass(frozen=True)
class Chunk:
    """`context` token ids; `index` counts the chunks of one document, `bos` says whether marks of beginning are in."""

    document: str
    index: int
    ids: list[int]
    bos: bool


def chunks(
    dataset: "Dataset", tokenizer: Any, *, context: int, documents: int | None = None, tokens: int | None = None
) -> list[Chunk]:
    """All full chunks of the first `tokens` positions (null = all) of the first `documents` documents (null = all).

    The mark of beginning takes the first place of each chunk and counts as a position. With `dataset.pack` the
    documents are joined instead, each after its mark, and the stream is cut: chunks are then documents of their own,
    `documents` is how many of them, and `tokens` how much of each document goes into the stream.
    """
    for name, value in (("context", context), ("documents", documents), ("tokens", tokens)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UsageError(f"{name}={value} must be a whole number, 1 or more")
    if context < 2:
        raise UsageError(f"context={context} leaves nothing to predict; take 2 or more")
    if tokens is not None and tokens < context and not dataset.pack:
        raise UsageError(f"tokens={tokens} is less than one chunk of context={context}; take tokens={context} or more")
    bos = bos_ids(dataset.bos, tokenizer)
    cut = _packed if dataset.pack else _by_document
    found, longest = cut(dataset, tokenizer, bos, context, documents, tokens)
    if not found:
        what = "all documents together have" if dataset.pack else "the longest document has"
        raise UsageError(
            f"dataset {dataset.name} fills no chunk of context={context}: {what} {longest} tokens "
            f"after dataset.skip={dataset.skip}; take context={max(longest, 2)} or less"
        )
    return found


def bos_ids(rule: str, tokenizer: Any) -> list[int]:
    """The mark of beginning as a list of one id, or none.

    `auto` asks what the tokenizer does: SmolLM2's names a chat mark as its `bos_token` and adds nothing.
    """
    if tokenizer is None:
        raise UsageError("the model brings no tokenizer, so no text can be measured with it; take another model")
    mark = tokenizer.bos_token_id
    if rule == "always" and mark is None:
        raise UsageError("dataset.bos=always, but this tokenizer has no token of beginning; take bos=auto or never")
    wanted = rule == "always" or (rule == "auto" and mark is not None and tokenizer("a")["input_ids"][:1] == [mark])
    return [mark] if wanted else []


def tokenise(tokenizer: Any, text: str, wanted: int | None = None) -> list[int]:
    """The first `wanted` ids (null = all) of a text read as plain text: a `<|endoftext|>` in it is no mark.

    Of a long text only a generous beginning is tokenised: a sweep asks for a few thousand tokens of a novel in every
    cell.
    """
    length = len(text) if wanted is None else 8 * (wanted + MARGIN)
    while True:
        ids = tokenizer(text[:length], add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        if length >= len(text) or (wanted is not None and len(ids) >= wanted + MARGIN):
            return ids[:wanted]
        length *= 2


def _by_document(
    dataset: "Dataset", tokenizer: Any, bos: list[int], context: int, documents: int | None, tokens: int | None
) -> tuple[list[Chunk], int]:
    size, longest, found = context - len(bos), 0, []
    wanted = None if tokens is None else dataset.skip + tokens // context * size
    for document in dataset.documents(documents):
        ids = tokenise(tokenizer, document.text, wanted)[dataset.skip :]
        longest = max(longest, len(ids) + len(bos))
        for index in range(len(ids) // size):
            found.append(Chunk(document.name, index, bos + ids[index * size : (index + 1) * size], bool(bos)))
    return found, longest


def _packed(
    dataset: "Dataset", tokenizer: Any, bos: list[int], context: int, documents: int | None, tokens: int | None
) -> tuple[list[Chunk], int]:
    wanted = None if tokens is None else dataset.skip + tokens
    stream: list[int] = []
    for document in dataset.documents():
        if documents is not None and len(stream) >= documents * context:
            break
        stream += bos + tokenise(tokenizer, document.text, wanted)[dataset.skip :]
    count = len(stream) // context
    return [
        Chunk(f"pack#{index:04d}", 0, stream[index * context : (index + 1) * context], bool(bos))
        for index in islice(range(count), documents)
    ], len(stream)
