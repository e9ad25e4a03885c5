"""A hub under load: busy, slow, cut short, gone. What is read is the same in the end, or there is one line."""

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pandas as pd
import pytest
from hub import Fault, Hub, Repository
from huggingface_hub import constants, file_download
from network import OWN, forget, point_to
from test_first_measurement import environment, make_models

from msrnn_bench.datasets import texts
from msrnn_bench.errors import MachineError, UsageError
from msrnn_bench.hub import asking, commits
from msrnn_bench.models import files
from msrnn_bench.models.sources import HubModel

MODEL, DATA = "models/EleutherAI/pythia-70m", "datasets/me/novels"
BUSY = Fault(503)
TEXT = "and so it went on " * 40


class Clock:
    """Time that passes where somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(round(seconds))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """No pause takes time, none is spread, and the library's own, after a cut, take none either."""
    time_of_tests = Clock()
    monkeypatch.setattr(asking, "clock", lambda: time_of_tests.now)
    monkeypatch.setattr(asking, "sleep", time_of_tests.sleep)
    monkeypatch.setattr(asking, "spread", lambda: 0.0)
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    return time_of_tests


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a model and a dataset, the caches empty."""
    make_models(tmp_path / "repositories/models/EleutherAI")
    put(tmp_path / "repositories", TEXT)
    with Hub(tmp_path / "repositories") as found:
        point_to(found.url, tmp_path / "cache", monkeypatch)
        yield found


def put(repositories: Path, text: str) -> str:
    folder = repositories / DATA
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"text": [text]}).to_parquet(folder / "test-00000-of-00001.parquet")
    return Repository(folder, "").commit()


def model(**settings: Any) -> HubModel:
    return HubModel(name="pythia", repo="EleutherAI/pythia-70m", **settings)


def data(**settings: Any) -> texts.Hub:
    return texts.Hub(repo="me/novels", **settings)


def asked(hub: Hub) -> list[str]:
    return [request for request in hub.requests if OWN not in request]


def line(kind: type[UsageError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as found:
        call()
    assert type(found.value) is kind and "\n" not in str(found.value)
    return str(found.value)


def by_turns(*faults: Fault, of: str = "") -> Callable[[str], Fault]:
    """The first requests that name `of` go wrong, in these ways."""
    left = list(faults)
    return lambda request: left.pop(0) if of in request and OWN not in request and left else Fault()


def each_once(*faults: Fault) -> Callable[[str], Fault]:
    """Every request goes wrong the first time that it is made, in these ways by turns."""
    seen, number = set(), count()

    def fault(request: str) -> Fault:
        if request in seen or OWN in request:
            return Fault()
        seen.add(request)
        return faults[next(number) % len(faults)]

    return fault


# --- patience


def test_a_busy_hub_is_asked_again_after_what_it_says_or_growing_pauses(hub, clock, capfd):
    hub.fault = by_turns(Fault(429, {"Retry-After": "7"}), BUSY, Fault(502), Fault(500))
    assert model().fingerprint()["commit"] == Repository(hub.folder / MODEL, "").commit()
    assert clock.pauses == [7, 2, 4, 8] and len(asked(hub)) == 5
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "model EleutherAI/pythia-70m: the hub answers 429; asked again in 7 s" and len(said) == 4


def test_patience_lasts_a_minute_and_comes_back_with_an_answer(hub, clock, capfd):
    hub.fault = lambda request: BUSY
    said = line(MachineError, model().fingerprint)
    assert hub.url in said and "answers 503, asked 8 times" in said and "model=smollm2" in said
    assert clock.pauses == [1, 2, 4, 8, 15, 15, 15] and clock.now <= asking.PATIENCE
    said = line(MachineError, data().documents)
    assert "answers 503" in said and "dataset=text" in said and len(clock.pauses) == 7, "another minute was waited"
    hub.fault = by_turns(Fault(), BUSY)
    assert data().documents()[0].text == TEXT and clock.pauses[7:] == [1]


def test_a_wait_beyond_the_minute_is_not_begun(hub, clock):
    """The library by itself would sleep for it, five times."""
    hub.fault = lambda request: Fault(429, {"RateLimit": '"api";r=0;t=300'})
    assert "answers 429 and asks to wait 300 s" in line(MachineError, model().fingerprint)
    assert clock.pauses == [] and len(asked(hub)) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None), ({"retry-after": "12"}, 12), ({"retry-after": " 1.5 "}, 1.5), ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None), ({"ratelimit": '"api";r=0;t=55'}, 55), ({"ratelimit": '"api";r=12;t=55'}, None),
        ({"retry-after": "3", "ratelimit": '"api";r=0;t=55'}, 3),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:20 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 20),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ],
)  # fmt: skip
def test_what_an_answer_asks_to_wait(headers, seconds):
    assert asking.asked_to_wait(headers) == seconds


def test_nothing_connects(hub, clock, capfd):
    hub.end()
    assert "does not answer" in line(MachineError, model().fingerprint)
    said = line(MachineError, data().documents)
    assert "does not answer" in said and "dataset.path=FOLDER" in said
    pinned = "0123456789" * 4
    assert "model.path=FOLDER" in line(MachineError, model(revision=pinned).config)
    assert "dataset.path=FOLDER" in line(MachineError, data(revision=pinned).documents)
    assert clock.pauses == [] and capfd.readouterr().err == ""


def test_the_limit_of_an_answer_is_the_librarys_setting(hub, clock, capfd, monkeypatch):
    """Of every question: the list of a repository's files has none in the library, and hangs."""
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    slow = Fault(seconds=1.6)
    hub.fault = each_once(slow)
    model().config()
    times = Counter(asked(hub))
    assert [number for request, number in times.items() if "/api/" in request] == [2, 2], times
    assert "did not answer within 1 s (HF_HUB_ETAG_TIMEOUT); asked again in 1 s" in capfd.readouterr().err


@pytest.mark.parametrize("value", ["abc", "0.5", "-1", "0", "1e3"])
def test_a_limit_that_the_library_cannot_read(monkeypatch, value):
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", value)
    for make in (model, data):
        assert f"HF_HUB_ETAG_TIMEOUT={value} must be a whole number of seconds" in line(UsageError, make)


def test_what_the_hub_refuses_is_not_asked_again(hub, clock):
    hub.fault = lambda request: Fault(403, {"X-Error-Code": "GatedRepo"}) if "/resolve/" in request else Fault()
    assert "gated" in line(UsageError, data().documents)
    assert "neither a folder here nor" in line(UsageError, texts.Hub(repo="me/nothing").documents)
    assert clock.pauses == []


# --- downloads


def test_a_download_that_is_cut(hub, clock, capfd):
    """The library itself goes on where it was, six times; then it is asked again from here."""
    hub.fault = by_turns(*[Fault(share=0.5)] * 20, of="GET /EleutherAI/pythia-70m/resolve")
    folder = model().folder(weights=True)
    for file in sorted(folder.iterdir()):
        assert file.read_bytes() == (hub.folder / MODEL / file.name).read_bytes(), file.name
    hub.fault = by_turns(*[Fault(share=0.0)] * 9, of="GET /datasets/me/novels/resolve")
    assert data().documents()[0].text == TEXT
    assert "dataset me/novels: the hub cut its answer short" in capfd.readouterr().err


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_download_that_is_always_cut_is_one_line(hub, clock, share):
    model().config()
    hub.fault = lambda request: Fault(share=share if "resolve" in request else 1.0)
    asking_model = line(MachineError, lambda: model().folder(weights=True))
    assert "cut its answer short" in asking_model and "model.path=FOLDER" in asking_model
    assert "cut its answer short" in line(MachineError, data().documents)
    assert clock.now <= 2 * asking.PATIENCE


def test_half_a_download_is_no_model(hub, clock, capfd):
    """A tokenizer without its settings reads, and reads otherwise."""
    hub.fault = lambda request: BUSY if "tokenizer_config" in request else Fault()
    assert "answers 503" in line(MachineError, lambda: model().folder(weights=True))
    (here,) = (Path(constants.HF_HUB_CACHE) / "models--EleutherAI--pythia-70m/snapshots").iterdir()
    assert files.has_tokenizer(here) and files.weight_files(here) and not (here / "tokenizer_config.json").exists()
    forget()
    assert "answers 503" in line(MachineError, lambda: model().folder(weights=True))
    hub.fault = by_turns()
    assert (model().folder(weights=True) / "tokenizer_config.json").is_file()


@pytest.mark.parametrize("ends", [False, True])
def test_a_busy_hub_does_not_change_what_a_dataset_is(hub, clock, capfd, ends):
    """`datasets` takes a file of settings that it could not fetch for none, and reads all files there are."""
    folder = hub.folder / DATA
    configuration = {"config_name": "default", "data_files": [{"split": "test", "path": "b.parquet"}]}
    (folder / ".huggingface.yaml").write_text(json.dumps({"configs": [configuration]}))
    pd.DataFrame({"text": ["the one that is meant"]}).to_parquet(folder / "b.parquet")
    hub.fault = (lambda request: BUSY if ".huggingface" in request else Fault()) if ends else by_turns(BUSY, of=".huggingface")
    if ends:
        assert "answers 503" in line(MachineError, data().documents)
    else:
        assert [document.text for document in data().documents()] == ["the one that is meant"]


# --- what the cache holds


def test_the_cache_serves_where_the_hub_does_not_answer(hub, clock, capfd):
    for made in (model(), data()):
        made.fingerprint()
    model().folder(weights=True)
    first = data().manifest()
    assert first["commit_by"] == "hub" and first["revision"] == "main" and model().origin()["commit_by"] == "hub"
    hub.requests.clear()
    capfd.readouterr()
    hub.end()
    forget()
    assert model().load(dtype="float32", device="cpu", seed=0).info["commit_by"] == "cache"
    again = data().manifest()
    assert again == {**first, "commit_by": "cache"} and asked(hub) == []
    said = [text for text in capfd.readouterr().err.splitlines() if "the hub is not asked" in text]
    short = first["commit"][:12]
    assert f"dataset me/novels: main is {short}, as the local cache has it; the hub is not asked" in said and len(said) == 2


def test_the_cache_serves_the_very_commit(hub, clock, monkeypatch):
    """By itself `datasets` would take the copy that was used last."""
    texts_at = {}
    for text in ("first edition", "second edition"):
        texts_at[put(hub.folder, text)] = text
        forget()
        shutil.rmtree(Path(constants.HF_HUB_CACHE) / "datasets--me--novels/refs", ignore_errors=True)
        assert data().documents()[0].text == text
    hub.end()
    for commit, text in [*texts_at.items(), *reversed(texts_at.items())]:
        forget()
        found = data(revision=commit).manifest()
        assert (found["commit"], found["commit_by"]) == (commit, "setting")
        assert data(revision=commit).documents()[0].text == text
    shutil.rmtree(Path(constants.HF_HUB_CACHE) / "datasets--me--novels/refs")
    forget()
    said = line(MachineError, data().documents)
    assert all(commit in said for commit in texts_at), "the line does not name what the cache holds"


@pytest.mark.parametrize("patterns", [None, ["*00000-of*"]])
def test_what_was_downloaded_serves_if_it_is_whole(hub, clock, patterns):
    """By `hf download`, as for nodes without a network: `datasets` itself would not look there."""
    (hub.folder / DATA / "test-00000-of-00001.parquet").rename(hub.folder / DATA / "test-00000-of-00002.parquet")
    pd.DataFrame({"text": ["more"]}).to_parquet(hub.folder / DATA / "test-00001-of-00002.parquet")
    huggingface_hub.snapshot_download("me/novels", repo_type="dataset", allow_patterns=patterns)
    hub.end()
    if patterns:
        assert "does not answer" in line(MachineError, data().documents)
    else:
        assert [document.text for document in data().documents()] == [TEXT, "more"]
        assert data().manifest()["commit"] == Repository(hub.folder / DATA, "").commit()


def test_a_split_that_is_not_there_is_told_from_the_cache_too(hub, clock):
    data().documents()
    hub.end()
    forget()
    assert "nope" in line(UsageError, data(split="nope").documents)
    assert "does not answer" in line(MachineError, data(config="nope").documents)


# --- a sweep asks once


def test_what_a_sweep_has_found_out_is_handed_on(hub, clock, monkeypatch, capfd):
    other = "0123456789" * 4
    assert commits.environment() == {}
    commit = model().identity()["commit"]
    handed = commits.environment()
    assert json.loads(handed[commits.COMMITS]) == {"model EleutherAI/pythia-70m@main": [commit, "hub"]}
    forget()
    hub.requests.clear()
    monkeypatch.setenv(commits.COMMITS, handed[commits.COMMITS].replace(commit, other))
    assert model().identity()["commit"] == other and asked(hub) == []
    data().documents()
    assert set(json.loads(commits.environment()[commits.COMMITS])) == {
        "model EleutherAI/pythia-70m@main",
        "dataset me/novels@main",
    }
    assert "not asked" not in capfd.readouterr().err
    monkeypatch.setenv(commits.COMMITS, "[1]")
    forget()
    assert commits.COMMITS in line(UsageError, model().identity)


# --- a sweep


SWEEP = [
    "experiment=smoke", "model=pythia_70m,pythia_410m", "model.weights=pretrained", "cache=8,16",
    "dataset=hub", "dataset.repo=me/novels", "context=64", "tokens=128", "documents=1", "device=cpu",
]  # fmt: skip


def sweep(results: Path, env: dict[str, str], policies: str = "tova,window4,h2o", *more: str) -> subprocess.Popen:
    grid = [*SWEEP, f"policy={policies}", f"results_dir={results}", *more]
    command = [sys.executable, "-m", "msrnn_bench.cli.main", "sweep", *grid]
    return subprocess.Popen(command, env=env, cwd=results.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def measured(results: Path) -> set[str]:
    """The models of which there is a finished cell."""
    manifests = [json.loads(path.read_text()) for path in (results / "cells").glob("[!.]*.json")]
    return {manifest["config"]["model"]["name"] for manifest in manifests}


def table(results: Path) -> pd.DataFrame:
    found = pd.read_csv(results / "summary.csv")
    return found.drop(columns=["tokens_per_second"]).sort_values("cell", ignore_index=True)


@pytest.mark.slow
def test_a_sweep_under_load_has_the_table_of_one_that_was_not_disturbed(tmp_path):
    """Twelve cells, two models: 429, 503, cut bodies, slow answers; then the hub ends for good while the sweep is running, and a
    second one, for whom it never was there, measures the last policy."""
    repositories = tmp_path / "repositories"
    make_models(repositories / "models/EleutherAI")
    put(repositories, TEXT)
    with Hub(repositories) as hub:
        calm = sweep(tmp_path / "calm", environment(tmp_path / "one", hub))
        out, err = calm.communicate()
        assert calm.returncode == 0, out + err
    assert len(table(tmp_path / "calm")) == 12

    faults = [Fault(429, {"Retry-After": "1"}), Fault(503), Fault(share=0.5), Fault(seconds=4.0), Fault(share=0.0)]
    with Hub(repositories) as hub:
        hub.fault = each_once(*faults)
        env = {**environment(tmp_path / "two", hub), "HF_HUB_ETAG_TIMEOUT": "3", "HF_HUB_DOWNLOAD_TIMEOUT": "3"}
        loaded = sweep(tmp_path / "loaded", env, "tova,window4", "workers=2")
        while loaded.poll() is None and measured(tmp_path / "loaded") < {"pythia_70m", "pythia_410m"}:
            time.sleep(0.05)
        assert loaded.poll() is None, loaded.communicate()
        hub.end()
        out, err = loaded.communicate()
        assert loaded.returncode == 0, out + err
        told = Counter(word for word in ("answers 429", "answers 503", "did not answer", "broke off") if word in err)
        assert len(told) == 4, err
        names = Counter(request for request in hub.requests if request.endswith("/revision/main"))
        assert list(names.values()) == [2, 2, 2], "each once, and once again for what went wrong with it"
    last = sweep(tmp_path / "loaded", env)
    out, err = last.communicate()
    assert last.returncode == 0 and "12 cells, 8 finished already" in out, out + err
    assert "the hub is not asked" in err
    pd.testing.assert_frame_equal(table(tmp_path / "loaded"), table(tmp_path / "calm"))
