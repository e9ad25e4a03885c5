"""Datasets on the Hugging Face hub: which commit a revision is, and the rows of a split, from there or a local folder.

Knows nothing of what is in the rows. Without a network every function fails at once and names the local alternative.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from msrnn_bench.errors import MachineError, UsageError, one_line, unless_looking


@lru_cache(maxsize=16)
def hub_commit(repo: str, revision: str) -> str | None:
    """The commit that a revision of a hub dataset stands for; None offline by the user's choice (HF_HUB_OFFLINE=1).

    Asked first and once: `datasets` itself retries for half a minute where there is no network.
    """
    unless_looking(f"dataset {repo} is the hub's: a run asks for it")
    from huggingface_hub import HfApi, errors

    try:
        return HfApi().dataset_info(repo, revision=revision, timeout=10).sha
    except errors.OfflineModeIsEnabled:
        return None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise UsageError(
            f"{repo} is neither a folder here nor, at revision {revision}, a dataset of the hub that you may read "
            "(for a gated one: `hf auth login`)"
        ) from error
    except Exception as error:  # the HTTP library's own errors, whichever it is this year
        raise MachineError(
            f"the hub cannot be reached for dataset {repo} ({one_line(error)}); "
            "take local text with dataset=text dataset.path=FOLDER, or a downloaded copy with HF_HUB_OFFLINE=1"
        ) from error


_loaded: dict[tuple[str, str], str] = {}  # (repo, revision) -> the commit that was really read, where it can be told


def read_commit(repo: str, revision: str) -> str | None:
    """The commit behind what was read, for the manifest: the hub's word, or where it was not asked the local cache's."""
    return hub_commit(repo, revision) or _loaded.get((repo, revision))


def hub_rows(repo: str, folder: Path | None, config: str | None, split: str, revision: str) -> Any:
    """One split of a hub dataset, or of a local folder of the same shape."""
    unless_looking(f"dataset {folder or repo} is read into the cache of `datasets`: a run does that")
    commit = None if folder else hub_commit(repo, revision)
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        if folder:
            return load_dataset(str(folder), name=config, split=split)
        rows = load_dataset(repo, name=config, split=split, revision=commit or revision)
    except (FileNotFoundError, ValueError, RuntimeError, DatasetsError) as error:
        raise UsageError(f"dataset {repo} (config {config}, split {split}): {one_line(error)}") from error
    except OSError as error:
        raise MachineError(
            f"dataset {repo} cannot be had here ({one_line(error)}); take local text: dataset=text dataset.path=FOLDER"
        ) from error
    _check_commit(rows, repo, revision, commit)
    return rows


def _check_commit(rows: Any, repo: str, revision: str, asked: str | None) -> None:
    """Offline `datasets` takes the latest copy that it has, whatever was asked for: a pin must hold all the same. The copy
    lies in a folder named after its commit."""
    folders = {Path(file["filename"]).parent.name for file in rows.cache_files}
    commits = {name for name in folders if re.fullmatch("[0-9a-f]{40}", name)}
    if len(commits) != 1:
        return
    (commit,) = commits
    _loaded[repo, revision] = commit
    pinned = asked or (revision if re.fullmatch("[0-9a-f]{40}", revision) else None)
    if pinned and pinned != commit:
        raise MachineError(
            f"dataset {repo} is wanted at commit {pinned}, but the local cache holds {commit} only: connect to the hub once, or "
            f"take what is there with dataset.revision={commit}"
        )
