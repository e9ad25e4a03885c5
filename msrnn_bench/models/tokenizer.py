"""The tokenizer of a model that has none, and what a manifest calls any."""

from collections.abc import Sequence
from typing import Any

BYTES_EOS = "<|endoftext|>"


def bytes_tokenizer() -> Any:
    """One token per byte, and an end mark: enough to feed a model of random weights any text, without a file."""
    from transformers import PreTrainedTokenizerFast

    core = _bytes({letter: index for index, letter in enumerate(_letters())})
    return PreTrainedTokenizerFast(tokenizer_object=core, name_or_path="bytes", eos_token=BYTES_EOS)


def folded_tokenizer(ids: Sequence[int]) -> Any:
    """One token per byte, of these ids alone: bytes share an id where there are fewer. For a vocabulary too small for bytes."""
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    letters = _letters()
    core = _bytes(dict(zip(letters, ids, strict=False)))
    folds = [normalizers.Replace(letters[at], letters[at % len(ids)]) for at in range(len(ids), len(letters))]
    core.normalizer = normalizers.Sequence([normalizers.ByteLevel(), *folds])
    core.pre_tokenizer = None
    return PreTrainedTokenizerFast(tokenizer_object=core, name_or_path="bytes")


def _letters() -> list[str]:
    """What the library writes for each of the 256 bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _bytes(vocabulary: dict[str, int]) -> Any:
    """A tokenizer without merges: letter -> id."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    core = Tokenizer(models.BPE(vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return core


def describe(tokenizer: Any) -> str:
    """A tokenizer's kind, for the manifest."""
    if tokenizer is None:
        return "none"
    return "bytes" if tokenizer.name_or_path == "bytes" else type(tokenizer).__name__


def handling(tokenizer: Any) -> dict[str, Any] | None:
    """What a tokenizer does that numbers rest on and its class does not tell: how many tokens it knows, what it puts around
    a text, and what becomes of a leading blank. For the manifest."""
    if tokenizer is None:
        return None
    plain = {text: tokenizer(text, add_special_tokens=False).input_ids for text in ("a", " a")}
    return {
        "class": type(tokenizer).__name__,
        "size": len(tokenizer),
        "ids": plain,
        "pieces": {text: tokenizer.convert_ids_to_tokens(ids) for text, ids in plain.items()},
        "with_special_tokens": tokenizer("a").input_ids,
        "add_prefix_space": getattr(tokenizer, "add_prefix_space", None),
    }
