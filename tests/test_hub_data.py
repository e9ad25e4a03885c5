"""Datasets of the hub offline: what was downloaded serves, a pin holds, and the manifest says which commit was read."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
from conftest import ROOT
from hub import Hub, Repository
from test_first_measurement import environment

READ = """
import json, sys
from msrnn_bench.datasets.texts import Hub
from msrnn_bench.errors import UsageError
out = []
for revision in sys.argv[1:]:
    try:
        dataset = Hub(repo="me/novels", revision=revision)
        text = dataset.documents()[0].text
        out.append([text, dataset.manifest()["commit"]])
    except UsageError as error:
        out.append([type(error).__name__, str(error)])
print(json.dumps(out))
"""


def read(environment: dict[str, str], *revisions: str) -> list[list[str]]:
    done = subprocess.run([sys.executable, "-c", READ, *revisions], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def put(folder: Path, text: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"text": [text]}).to_parquet(folder / "test-00000-of-00001.parquet")
    return Repository(folder, "").commit()


def test_a_pin_holds_offline_too(tmp_path):
    folder = tmp_path / "repositories/datasets/me/novels"
    first = put(folder, "the first edition")
    with Hub(tmp_path / "repositories") as hub:
        online = environment(tmp_path, hub)
        assert read(online, "main") == [["the first edition", first]]
    offline = {**online, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    other = "0123456789" * 4
    main, pinned, wrong = read(offline, "main", first, other)
    assert main == pinned == ["the first edition", first], "the manifest names the commit that was read"
    kind, line = wrong
    assert kind == "MachineError" and other in line and f"dataset.revision={first}" in line
