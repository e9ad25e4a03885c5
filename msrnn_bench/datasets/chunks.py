"""Documents to chunks of exactly `context` tokens. Knows a tokenizer only as something to call, and no file.

The end of a text that does not fill a chunk is dropped: every number is measured at full context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from msrnn_bench.errors import UsageError

if TYPE_CHECKING:
    from msrnn_bench.datasets.texts import Dataset

# How a text's end is read may depend on what follows it, so ids this near to the end of a cut text are not used.
MARGIN = 256


@dataclass(frozen=True)
class Run:
    """Where tokens of a chunk come from: `count` of them, from place `at` on, are those of document number `document` from its
    token `first` on (what dataset.skip leaves out is counted)."""

    at: int
    document: int
    first: int
    count: int


@dataclass(frozen=True)
class Chunk:
    """`context` token ids; `index` counts the chunks of one document, `bos` says whether marks of beginning are in, `runs` where
    all others come from."""

    document: str
    index: int
    ids: list[int]
    bos: bool
    runs: tuple[Run, ...] = ()


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


def beginnings(
    dataset: "Dataset", tokenizer: Any, *, tokens: int, least: int, documents: int | None = None
) -> tuple[list[Chunk], dict[str, int]]:
    """The first `tokens` positions, or all there are, of each of the first `documents` documents (null = all) that has at
    least `least`; and the lengths of those that have fewer, by name.

    The mark of beginning counts as a position. With `dataset.pack` the documents are joined first, each whole and after its
    mark, and the stream is cut every `tokens`.
    """
    bos = bos_ids(dataset.bos, tokenizer)
    short: dict[str, int] = {}
    found: list[Chunk] = []
    if dataset.pack:
        found, longest = _packed(dataset, tokenizer, bos, max(tokens, least), documents, None)
        found = [Chunk(one.document, one.index, one.ids[:tokens], one.bos) for one in found]
    else:
        longest, wanted = 0, dataset.skip + max(tokens, least) - len(bos)
        for document in dataset.documents(documents):
            ids = bos + tokenise(tokenizer, document.text, wanted)[dataset.skip :]
            longest = max(longest, len(ids))
            if len(ids) < least:
                short[document.name] = len(ids)
            else:
                found.append(Chunk(document.name, 0, ids[:tokens], bool(bos)))
    if not found:
        what = "all documents together have" if dataset.pack else "the longest document has"
        join = "" if dataset.pack else "; dataset.pack=true joins the documents"
        raise UsageError(f"dataset {dataset.name} holds no text of {least} tokens: {what} {longest}, so take fewer{join}")
    return found, short


def together(documents: Sequence[Sequence[Chunk]], batch: int) -> list[list[int]]:
    """The numbers of the documents that are read together: neighbours whose chunks, all of one length, are no more than `batch`.
    One that has more is alone, and read in several batches.

    So a batch never ends within a document that another one has to finish, and at `batch` 1 every document is alone."""
    groups: list[list[int]] = []
    room = length = 0
    for number, pieces in enumerate(documents):
        if len(pieces) > room or len(pieces[0].ids) != length:
            groups.append([])
            room, length = batch, len(pieces[0].ids)
        groups[-1].append(number)
        room -= len(pieces)
    return groups


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
    return _encoded(tokenizer, text, wanted)["input_ids"][:wanted]


def located(tokenizer: Any, text: str, wanted: int) -> tuple[list[int], list[tuple[int, int]]] | None:
    """`tokenise`, and for each id the [start, end) of its characters; None where the tokenizer does not tell (those that are
    written in Python)."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    found = _encoded(tokenizer, text, wanted, return_offsets_mapping=True)
    return found["input_ids"][:wanted], [(int(a), int(b)) for a, b in found["offset_mapping"][:wanted]]


def _encoded(tokenizer: Any, text: str, wanted: int | None, **options: Any) -> Any:
    length = len(text) if wanted is None else 8 * (wanted + MARGIN)
    while True:
        found = tokenizer(text[:length], add_special_tokens=False, split_special_tokens=True, verbose=False, **options)
        if length >= len(text) or (wanted is not None and len(found["input_ids"]) >= wanted + MARGIN):
            return found
        length *= 2


def _by_document(
    dataset: "Dataset", tokenizer: Any, bos: list[int], context: int, documents: int | None, tokens: int | None
) -> tuple[list[Chunk], int]:
    size, longest, found = context - len(bos), 0, []
    wanted = None if tokens is None else dataset.skip + tokens // context * size
    for number, document in enumerate(dataset.documents(documents)):
        ids = tokenise(tokenizer, document.text, wanted)[dataset.skip :]
        longest = max(longest, len(ids) + len(bos))
        for index in range(len(ids) // size):
            run = Run(len(bos), number, dataset.skip + index * size, size)
            found.append(Chunk(document.name, index, bos + ids[index * size : (index + 1) * size], bool(bos), (run,)))
    return found, longest


def _packed(
    dataset: "Dataset", tokenizer: Any, bos: list[int], context: int, documents: int | None, tokens: int | None
) -> tuple[list[Chunk], int]:
    wanted = None if tokens is None else dataset.skip + tokens
    stream: list[int] = []
    runs: list[Run] = []  # of the stream
    for number, document in enumerate(dataset.documents()):
        if documents is not None and len(stream) >= documents * context:
            break
        ids = tokenise(tokenizer, document.text, wanted)[dataset.skip :]
        runs.append(Run(len(stream) + len(bos), number, dataset.skip, len(ids)))
        stream += bos + ids
    found = []
    for index in islice(range(len(stream) // context), documents):
        begin, end = index * context, (index + 1) * context
        inside = tuple(part for run in runs if (part := _cut(run, begin, end)) is not None)
        found.append(Chunk(f"pack#{index:04d}", 0, stream[begin:end], bool(bos), inside))
    return found, len(stream)


def _cut(run: Run, begin: int, end: int) -> Run | None:
    """The part of a stream's run that a chunk [begin, end) of it has."""
    first, last = max(run.at, begin), min(run.at + run.count, end)
    return Run(first - begin, run.document, run.first + first - run.at, last - first) if first < last else None
