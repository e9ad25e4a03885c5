"""Every causal class of the installed transformers is exact, or refused with a reason: a sample by default, all with -m slow."""

import zlib

import architectures
import pytest
import transformers
from conftest import ROOT

KINDS = list(architectures.kinds())
SAMPLE = {name for name, kind in KINDS if zlib.crc32(kind.encode()) % 5 == 0}
EXACT = {tuple(line.split()) for line in (ROOT / "tests/exact_classes.txt").read_text().splitlines() if line[0] != "#"}
found = {}


@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(*one, marks=[] if one[0] in SAMPLE else pytest.mark.slow, id=one[0]) for one in KINDS]
)
def test_a_class_is_exact_or_refused(name, kind):
    for (_, _, tight), one in architectures.table({name}):
        found[name, kind, tight] = one
        way = "tight" if tight else "plain"
        assert one.kind != "wrong", f"{kind}, {way}: {one.why}"
        assert one.kind == "exact" or one.why
        assert one.kind == "exact" or (name, way) not in EXACT, f"{kind}, {way} was exact: {one.why}"


@pytest.mark.slow
def test_the_table_in_the_docs_is_what_was_found(capsys):
    """For the version it was written with; what could not be built is listed by name."""
    if len({name for name, _, _ in found}) < len(KINDS):
        pytest.skip("needs all of the above: -m slow, one process")
    kinds = [one.kind for one in found.values()]
    with capsys.disabled():
        print(f"\ntransformers {transformers.__version__}:", {kind: kinds.count(kind) for kind in sorted(set(kinds))})
        print("other:", *(f"{name} ({one.why[:60]})" for (name, _, _), one in found.items() if one.kind == "other"), sep="\n  ")
    docs = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}," in docs:
        assert docs == architectures.markdown(found), "python tests/architectures.py writes it anew"


def test_the_committed_classes_are_still_there():
    assert {name for name, _ in EXACT} <= {name for name, _ in KINDS}
