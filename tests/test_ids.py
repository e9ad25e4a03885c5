"""No committed number loses its name: every recorded configuration, sent through `prepare()`, has the id it was stored under.

What the configuration names is read again, so that the id is formed anew from it. Where a text, a local model or a version
is not at hand, that one fingerprint is taken from the manifest, and the test says of how many cells.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, SHARED, Silent, committed

from msrnn_bench.datasets.questions import Squality
from msrnn_bench.datasets.texts import PyDocs, PySource, Text
from msrnn_bench.models.sources import LocalModel
from msrnn_bench.runs import identity
from msrnn_bench.runs.cell import prepare
from msrnn_bench.runs.restored import restored
from msrnn_bench.tasks.lm_eval import harness

TINY = ROOT / "tests/tiny/model"


def recorded() -> dict[Path, dict]:
    """Every manifest that is committed."""
    return {path: json.loads(path.read_text()) for path in committed()}


def today(manifest: dict):
    """The manifest's configuration as `rerun` takes it up."""
    return restored(manifest, [], "results", trust=False)


def here(path: str | None) -> Path | None:
    """A recorded path of the shared data where that folder is on this machine; None where it is missing."""
    found = SHARED / str(path).removeprefix("../shared/")
    return found if path and found.exists() else None


@pytest.mark.parametrize("shared_data", ["as it is here", "hidden"])
def test_every_committed_cell_keeps_its_id(shared_data, monkeypatch, capsys, tmp_path):
    """With the shared data hidden one cell of each folder: where there is none, as in CI, the other case is that one for all."""
    built, went, wrong, cells = {}, Counter(), {}, recorded()
    if shared_data == "hidden":
        cells = {path: cells[path] for path in {path.parent: path for path in cells}.values()}
    for path, manifest in cells.items():
        config, known, taken = today(manifest), manifest["settings"], []
        with monkeypatch.context() as patch:
            patch.setattr(identity, "NUMERICS", known["numerics"])
            for group, kind in (("dataset", {"Text": Text, "Squality": Squality}), ("model", {"LocalModel": LocalModel})):
                made = kind.get(config[group]._target_.rpartition(".")[2])
                if made is None:
                    continue
                found = here(config[group].path) if shared_data != "hidden" else None
                if found is None:
                    patch.setattr(made, "fingerprint", lambda self, *_, value=known[group], **__: value)
                    taken.append(group)
                config[group].path = str(found or (TINY if group == "model" else tmp_path))
            python = manifest["dataset"].get("python")
            if python and not same_library(manifest):
                for made in (PySource, PyDocs):
                    patch.setattr(made, "fingerprint", lambda self, *_, value=known["dataset"], **__: value)
                taken.append("dataset")
            if "versions" in known["task"] and known["task"]["versions"] != harness.versions():
                patch.setattr(harness, "versions", lambda value=known["task"]["versions"]: value)
                taken.append("versions")
            if "machine" in known["task"] and known["task"]["machine"] != identity.hardware(config.device):
                patch.setattr(identity, "hardware", lambda device, value=known["task"]["machine"]: value)
                taken.append("machine")
            cell = prepare(config, [], Silent(), built).cell
        went[", ".join(taken) or "nothing"] += 1
        if cell.id != path.stem:
            wrong[path.stem] = cell.id
    with capsys.disabled():
        ways = "; ".join(f"{n} with {what} taken from the manifest" for what, n in sorted(went.items()))
        print(f"\nids, shared data {shared_data}: {sum(went.values())} committed cells: {ways}")
    assert wrong == {}
    assert went.total() == len(cells) >= (14 if shared_data == "hidden" else 335)


def same_library(manifest: dict) -> bool:
    """Whether this Python brings the modules that were read: it may be another version."""
    import hashlib

    from msrnn_bench.datasets.texts import _library_source

    listed = manifest["dataset"]["listed"]
    if manifest["config"]["dataset"]["_target_"].endswith("PyDocs"):
        texts = [document.text for document in PyDocs(name="pydocs", parts=manifest["config"]["dataset"]["parts"]).read()]
    else:
        texts = [_library_source(entry["name"]).read_text(encoding="utf-8") for entry in listed]
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts] == [entry["sha256"] for entry in listed]


def test_a_change_of_what_counts_is_seen():
    """The test above can fail: one setting more or less of what a number depends on is another id."""
    path, manifest = next(iter(recorded().items()))
    config = today(manifest)
    for key, value in (("seed", 1), ("tokens", 8192), ("dtype", "float16")):
        other = config.copy()
        other[key] = value
        if other.dataset.get("path"):
            other.dataset.path = str(here(other.dataset.path) or ROOT / "README.md")
        assert prepare(other, [], Silent(), {}).cell.id != path.stem
