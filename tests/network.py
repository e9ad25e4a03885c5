"""This process as one that begins: pointed to a hub with empty caches, or without a network."""

from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import constants
from huggingface_hub.utils import get_session, httpx

from msrnn_bench.datasets import hub as data_hub
from msrnn_bench.datasets import texts
from msrnn_bench.hub import asking, commits

OWN = "/api/agent-harnesses"  # what the hub's library asks for on its own account


def point_to(url: str, cache: Path, monkeypatch: Any) -> None:
    """What a new process would find with HF_ENDPOINT=url and HF_HOME=cache, in this one."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(cache / "hub")}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache / "datasets"))
    monkeypatch.delenv(commits.COMMITS, raising=False)
    forget()


def forget() -> None:
    """As in a process that begins."""
    commits._known.clear()
    asking._tired.clear()
    data_hub._loaded.clear()
    texts._read.cache_clear()


def no_network(monkeypatch: Any) -> list[str]:
    """No request of the hub's library finds a way; returns what it asks for."""
    asked: list[str] = []

    def refuse(client: Any, request: Any, **_: Any) -> None:
        if OWN not in request.url.path:
            asked.append(request.url.path)
        raise httpx.ConnectError("Name or service not known")

    monkeypatch.setattr(type(get_session()), "send", refuse)
    return asked
