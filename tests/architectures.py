"""Every causal class of the installed transformers, built tiny, against the oracle: exact, refused with a reason, or other.

`python tests/architectures.py` writes docs/models.md; with model types (or `all`), prints what it finds of them.
"""

import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import oracle
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import msrnn_bench as mb
from msrnn_bench.models.twins import OPEN
from msrnn_bench.multistate import twin

TOKENS, STATES, SHORT = 24, 8, 16


@dataclass
class Finding:
    """`kind`: exact, refused, other or wrong; `notes`: ways of reading that are refused where the rest is exact."""

    kind: str
    why: str = ""
    notes: list[str] = field(default_factory=list)


def kinds():
    """Model type and class, every one."""
    for name, known in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        yield name, known if isinstance(known, str) else known[0]


def config_of(name, kind):
    """The default configuration, as a decoder, of the text part where the class is of that."""
    config = CONFIG_MAPPING[name]()
    for key, value in OPEN.get(name, {}).items():
        setattr(config, key, value)
    if kind.config_class == config.sub_configs.get("text_config"):
        config = config.get_text_config()
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    return config


def build(name, kind, tight):
    """The tiny model and a text; raises where either cannot be had."""
    kind = getattr(transformers, kind)
    config = twin.shrunk(config_of(name, kind), tight=tight)
    model = twin.build(kind, config)
    ids = torch.randint(3, 90, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), twin.Wide():
        try:
            answer = model(ids, use_cache=False)
        except TypeError:  # takes no use_cache
            answer = model(ids)
    assert torch.isfinite(answer.logits).all(), "logits that are no numbers"
    return model, ids


def tight_differs(name, kind):
    """Whether the class has a length threshold at all."""
    try:
        config = config_of(name, getattr(transformers, kind))
        plain, tight = (twin.shrunk(config, tight=t).to_dict() for t in (False, True))
        return plain != tight
    except Exception:
        return False


def examine(name, kind, tight=False, **options):
    """One class, with its windows inert or binding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity(50)
        try:
            model, ids = build(name, kind, tight)
        except Exception as error:
            return Finding("other", said(error))
        with twin.Wide():
            return _examine(model, ids, options)


def _examine(model, ids, options):
    policy = mb.Tova()
    try:
        with mb.bounded(model, policy, STATES, **options):
            whole = model(ids[:1]).logits[0]
    except mb.UsageError as error:
        return Finding("refused", str(error))
    except Exception as error:
        return Finding("wrong", f"bare exception: {said(error)}")
    try:
        wanted = oracle.bounded_logits(model, ids[:1], policy, STATES)[0]
        short = oracle.bounded_logits(model, ids[1:, -SHORT:], policy, STATES)[0]
    except Exception as error:
        return Finding("wrong" if not equal_full(model, ids, whole, options) else "other", f"no oracle: {said(error)}")
    if not equal(whole, wanted):
        return Finding("wrong", f"whole: {off(whole, wanted)}")
    found = Finding("exact")
    for way, work in (("pieces", _pieces), ("padding", _padding), ("generate", _generate)):
        try:
            with mb.bounded(model, policy, STATES, **options) as states:
                pairs = list(work(model, ids, states, wanted, short))
        except mb.UsageError as error:
            found.notes.append(f"{way}: {error}")
            continue
        except Exception as error:
            return Finding("wrong", f"{way}: bare exception: {said(error)}")
        for ours, theirs in pairs:
            if not equal(ours, theirs):
                return Finding("wrong", f"{way}: {off(ours, theirs)}")
    return found


def equal_full(model, ids, _, options):
    """With room for all states: the model itself."""
    with torch.no_grad():
        full = model(ids[:1], use_cache=False).logits
    with mb.bounded(model, mb.Tova(), TOKENS, **options):
        return equal(model(ids[:1]).logits, full)


def cache_name(model):
    import inspect

    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _pieces(model, ids, states, wanted, _):
    parts = [model(ids[:1, :11]).logits[0]]
    for at, end in ((11, 23), (23, 24)):
        parts.append(model(ids[:1, at:end], **{cache_name(model): states.current}).logits[0])
    yield torch.cat(parts), wanted


def _padding(model, ids, states, wanted, short):
    mask = torch.ones_like(ids)
    mask[1, : TOKENS - SHORT] = 0
    logits = model(ids, attention_mask=mask).logits
    yield logits[0], wanted
    yield logits[1, -SHORT:], short


def _generate(model, ids, states, *_):
    prompt = ids[:1, :12]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), output_logits=True, return_dict_in_generate=True, **options
    )
    states.__exit__(None, None, None)
    walked = oracle.bounded_logits(model, out.sequences[:, :-1], mb.Tova(), STATES)[0][11:]
    states.__enter__()
    yield torch.cat(out.logits), walked.float()


def equal(ours, theirs):
    close = 1e-6 if ours.dtype == torch.float64 else 1e-4
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= close * max(float(theirs.std()), 1e-9)


def off(ours, theirs):
    return f"{float((ours - theirs).abs().max()):.2g} off, at a spread of {float(theirs.std()):.2g}"


def said(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def table(only=None, **options):
    """Everything: (model type, class, tight) and its finding."""
    for name, kind in kinds():
        if only is not None and name not in only:
            continue
        yield (name, kind, False), examine(name, kind, **options)
        if tight_differs(name, kind):
            yield (name, kind, True), examine(name, kind, tight=True, **options)


DOCS = Path(__file__).resolve().parents[1] / "docs/models.md"


def markdown(found):
    """docs/models.md: what was seen of every class."""
    counts = {kind: sum(f.kind == kind for f in found.values()) for kind in ("exact", "refused", "other", "wrong")}
    lines = [
        "# Which models",
        "",
        f"Every causal class of transformers {transformers.__version__}, built tiny in float64 with peaked attention,",
        "against an oracle that walks the library's own model one token at a time and deletes what the policy evicts: whole, in",
        "pieces, in a batch padded on the left, and while it writes. `plain`: the text is shorter than the model's windows and",
        "the other lengths at which it changes its ways; `tight`: longer. `python tests/architectures.py` writes this page.",
        "",
        f"{counts['exact']} exact, {counts['refused']} refused with a reason, {counts['other']} other (could not be built here),"
        f" {counts['wrong']} wrong.",
        "",
        "A model of your own is not looked up here: the first time it is bounded, `bounded()` holds a small twin of its class",
        "and settings, and the model itself, against the theorem (with room for all states a bounded model is the model) and",
        "refuses it where they differ. `verify=False` turns that off.",
        "",
        "| model type | class | lengths | | what is refused, or missing |",
        "|---|---|---|---|---|",
    ]
    for (name, kind, tight), one in found.items():
        why = "; ".join(filter(None, [one.why, *one.notes])).replace("|", "/")
        lines.append(f"| {name} | {kind} | {'tight' if tight else 'plain'} | {one.kind} | {why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:]:
        for (name, kind, tight), found in table(set(sys.argv[1:]) - {"all"} or None):
            print(found.kind, name, kind, "tight" if tight else "plain", found.why, *found.notes, sep="\t", flush=True)
    else:
        DOCS.write_text(markdown(dict(table())), encoding="utf-8")
