"""Datasets on the Hugging Face hub: the rows of a split, from the caches that hold them, the hub, or a local folder.

Knows nothing of what is in the rows. Without a network every function fails at once and names the local alternative.
"""

import re
from pathlib import Path
from typing import Any

from msrnn_bench.errors import MachineError, UsageError, one_line, unless_looking
from msrnn_bench.hub.asking import NoAnswerError, patiently
from msrnn_bench.hub.commits import HASH, Commit, commit

ELSEWHERE = "take local text with dataset=text dataset.path=FOLDER"

_loaded: dict[tuple[str, str], str] = {}  # (repo, revision) -> the commit that was really read, where it can be told


def hub_commit(repo: str, revision: str) -> Commit | None:
    """The commit that a revision of a hub dataset stands for; None offline by the user's choice (HF_HUB_OFFLINE=1), where the
    cache does not know the name."""
    from huggingface_hub import errors

    try:
        return commit("dataset", repo, revision)
    except errors.OfflineModeIsEnabled:
        return None
    except UsageError:
        raise
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise UsageError(
            f"{repo} is neither a folder here nor, at revision {revision}, a dataset of the hub that you may read "
            "(for a gated one: `hf auth login`)"
        ) from error
    except Exception as error:  # the HTTP library's own errors, whichever it is this year
        raise _unreachable(repo, error) from error


def origin(repo: str, revision: str) -> dict[str, Any]:
    """For a manifest: the revision, the commit that was read and who said so."""
    found = hub_commit(repo, revision)
    if found is None:
        return {"revision": revision, "commit": _loaded.get((repo, revision)), "commit_by": "cache"}
    return {"revision": revision, "commit": found.id, "commit_by": found.source}


def hub_rows(repo: str, folder: Path | None, config: str | None, split: str, revision: str) -> Any:
    """One split of a hub dataset, or of a local folder of the same shape."""
    unless_looking(f"dataset {folder or repo} is read into the cache of `datasets`: a run does that")
    found = None if folder else hub_commit(repo, revision)
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        if found and (kept := _kept(repo, config, found.id)):
            return kept.as_dataset(split=split)
        here = folder or (_downloaded(repo, found.id) if found else None)
        if here:
            return load_dataset(str(here), name=config, split=split)
        at = found.id if found else revision
        rows = patiently("dataset", repo, lambda: load_dataset(repo, name=config, split=split, revision=at))
    except NoAnswerError as error:
        raise _unreachable(repo, error) from error
    except (FileNotFoundError, ValueError, RuntimeError, DatasetsError) as error:
        raise UsageError(f"dataset {repo} (config {config}, split {split}): {one_line(error)}") from error
    except OSError as error:
        raise MachineError(f"dataset {repo} cannot be had here ({one_line(error)}); {ELSEWHERE}") from error
    _check_commit(rows, repo, revision, found)
    return rows


def _kept(repo: str, config: str | None, commit: str) -> Any:
    """What `datasets` has prepared of this very commit; None where it has not, or where it is not clear of which configuration.
    Its own search is for the latest copy, whatever was asked for, and asks the hub first."""
    folders = [folder for folder in _copies(repo, config) if folder.name == commit]
    if len(folders) != 1:
        return None
    from datasets.packaged_modules.cache.cache import Cache

    name, version = folders[0].parts[-3:-1]
    return Cache(dataset_name=repo.split("/")[-1], repo_id=repo, config_name=name, version=version, hash=commit)


def _downloaded(repo: str, commit: str) -> Path | None:
    """The whole repository at this commit, as `hf download` leaves it; where files are missing, or it is not known that none
    are, the rest would be read as if it were all."""
    from huggingface_hub import errors, get_cached_repo_tree, snapshot_download

    try:
        get_cached_repo_tree(repo, repo_type="dataset", revision=commit)
        return Path(snapshot_download(repo, repo_type="dataset", revision=commit, local_files_only=True))
    except (errors.CachedRepoTreeNotFoundError, errors.LocalEntryNotFoundError):
        return None


def _copies(repo: str, config: str | None) -> list[Path]:
    """The folders CONFIG/VERSION/COMMIT in which `datasets` keeps what it has prepared of a repository."""
    from datasets import config as places
    from datasets.naming import camelcase_to_snakecase

    *owner, name = repo.split("/")
    root = Path(places.HF_DATASETS_CACHE).expanduser() / "___".join([*owner, camelcase_to_snakecase(name)])
    found = [folder for folder in root.glob("*/*/*") if folder.is_dir() and re.fullmatch(HASH, folder.name)]
    return sorted(folder for folder in found if config in (None, folder.parts[-3]))


def _unreachable(repo: str, error: Exception) -> MachineError:
    """The line for a hub that was needed and did not answer."""
    said = str(error) if isinstance(error, NoAnswerError) else f"cannot be reached ({one_line(error)})"
    copies = sorted({folder.name for folder in _copies(repo, None)})
    kept = f", or what the local cache holds with dataset.revision={' or '.join(copies)}" if copies else ""
    return MachineError(f"dataset {repo} is not in the local cache and the hub {said}; {ELSEWHERE}{kept}")


def _check_commit(rows: Any, repo: str, revision: str, asked: Commit | None) -> None:
    """Offline `datasets` takes the latest copy that it has, whatever was asked for: a pin must hold all the same. The copy
    lies in a folder named after its commit."""
    folders = {Path(file["filename"]).parent.name for file in rows.cache_files}
    commits = {name for name in folders if re.fullmatch(HASH, name)}
    if len(commits) != 1:
        return
    (read,) = commits
    _loaded[repo, revision] = read
    if asked and asked.id != read:
        raise MachineError(
            f"dataset {repo} is wanted at commit {asked.id}, but the local cache holds {read} only: connect to the hub once, or "
            f"take what is there with dataset.revision={read}"
        )
