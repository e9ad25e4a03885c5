"""Whether the tokenizer that transformers makes of a GGUF file does what the file's settings say: tried, not believed."""

from typing import Any

from msrnn_bench.errors import UsageError

PREFIX = "tokenizer."
# Read by transformers, or tried below.
APPLIED = {
    "ggml.model", "ggml.pre", "ggml.tokens", "ggml.scores", "ggml.token_type", "ggml.merges", "ggml.bos_token_id",
    "ggml.eos_token_id", "ggml.unknown_token_id", "ggml.padding_token_id", "ggml.add_bos_token", "ggml.add_eos_token",
    "ggml.add_space_prefix", "chat_template",
}  # fmt: skip
# No token of an ordinary text depends on these: marks of turns and of gaps to fill, further templates, and what concerns
# tokenizers of encoders only.
SILENT = {
    "ggml.eot_token_id", "ggml.eom_token_id", "ggml.seperator_token_id", "ggml.mask_token_id", "ggml.add_sep_token",
    "ggml.cls_token_id", "ggml.fim_pre_token_id", "ggml.fim_suf_token_id", "ggml.fim_mid_token_id", "ggml.fim_pad_token_id",
    "ggml.fim_rep_token_id", "ggml.fim_sep_token_id", "ggml.prefix_token_id", "ggml.suffix_token_id",
    "ggml.middle_token_id", "ggml.eot_token_ids", "ggml.eog_token_ids", "ggml.remove_extra_whitespaces",
    "ggml.precompiled_charsmap", "huggingface.json", "chat_templates",
}  # fmt: skip
# Ways of splitting a text that are GPT-2's, which transformers takes for all that are not in its table.
GPT2_LIKE = {"gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code", "trillion"}
GPT2_LIKE |= {"roberta-bpe", "gigachat"}
# Not GPT-2's, yet so near that it is let pass and told in the manifest. Of this one no merge joins digits, so that the same
# tokens come out but before a digit with several blanks (0.02 to 0.14% of them in source code and documentation).
NEARLY = {"smollm": "tokenizer.ggml.pre=smollm: digits are not split off before the text is split as GPT-2 does it"}


def nearly(metadata: dict[str, Any]) -> list[str]:
    """What the tokenizer does otherwise than the file says, and is let pass."""
    return [NEARLY[pre]] if (pre := metadata.get("tokenizer.ggml.pre")) in NEARLY else []


def check_tokenizer(tokenizer: Any, metadata: dict[str, Any], rows: int, where: str) -> None:
    """Refuse what the file says about its tokenizer and this one does not do."""
    has = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    faults = [*_unknown(has), *_wrong_ids(tokenizer, has, rows), *_wrong_ends(tokenizer, has)]
    if faults:
        raise UsageError(
            f"{where}: its tokenizer is not read as the file says ({'; '.join(faults[:3])}): give the original folder"
        )


def _unknown(has: dict[str, Any]) -> list[str]:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    known = APPLIED | SILENT
    unknown = [key for key in has if key not in known and not key.startswith("chat_template.")]
    pre = has.get("ggml.pre")
    if has.get("ggml.model") == "gpt2" and pre and pre not in GPT2_LIKE | set(NEARLY) | set(GGUF_PRE_TOKENIZER_SPLITS):
        unknown.append(f"ggml.pre={pre}")
    return [f"tokenizer.{key} is unknown" for key in unknown]


def _wrong_ids(tokenizer: Any, has: dict[str, Any], rows: int) -> list[str]:
    faults = []
    if len(has.get("ggml.tokens", ())) > rows:
        faults.append(f"{len(has['ggml.tokens'])} tokens for an embedding of {rows}")
    for key, name in (("bos", "bos_token_id"), ("eos", "eos_token_id")):
        wanted, got = has.get(f"ggml.{name}"), getattr(tokenizer, name)
        if wanted is not None and wanted != got:
            faults.append(f"{key} is {got}, not {wanted}")
    return faults


def _wrong_ends(tokenizer: Any, has: dict[str, Any]) -> list[str]:
    """A blank put before the text, a mark before and after it, as the file wants them and as they come."""
    pieces = has.get("ggml.model") == "llama"  # llama.cpp: sentencepiece gets a blank and a beginning, unless told otherwise
    ids = tokenizer("a").input_ids
    bare = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids)
    tried = {
        "add_space_prefix": (pieces, bare[:1] != [tokenizer.unk_token] and bare[0][:1] in "▁Ġ"),
        "add_bos_token": (pieces, ids[0] == tokenizer.bos_token_id),
        "add_eos_token": (False, ids[-1] == tokenizer.eos_token_id),
    }
    if has.get("ggml.model") == "gemma4":  # its template writes the mark; transformers follows the original there
        del tried["add_bos_token"]
    told = {key: bool(has.get(f"ggml.{key}", usual)) for key, (usual, _) in tried.items()}
    return [f"{key} is {told[key]} in the file" for key, (_, does) in tried.items() if told[key] != does]
