"""Models on the Hugging Face hub: which commit a revision is, and its files in a local folder, at once or not at all.

Without a network every function fails within seconds and names the local alternative. Imports the hub's library where
it is used.
"""

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from msrnn_bench.errors import MachineError, UsageError, one_line, unless_looking
from msrnn_bench.models import files

NETWORK_SECONDS = 5.0
ELSEWHERE = "use model=smollm2, or a folder that you have: model=local model.path=FOLDER"


@functools.cache
def hub_commit(repo: str, revision: str) -> str:
    """The commit behind a revision: a full hash is itself; a name is what the local cache holds, else the hub's answer.
    Asked once per process, so that the cell's id and the download agree."""
    from huggingface_hub import try_to_load_from_cache

    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    with _hub_errors(repo, revision):
        known = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(known).parent.name if isinstance(known, str) else _ask_hub(repo, revision)


def _ask_hub(repo: str, revision: str) -> str:
    """One request, no retry: the downloads of the hub's library would wait for half a minute without a network."""
    unless_looking(f"{repo} is not in the local hub cache: a run downloads it")
    from huggingface_hub import HfApi

    with _hub_errors(repo, revision):
        return str(HfApi().model_info(repo, revision=revision, timeout=NETWORK_SECONDS).sha)


def hub_folder(repo: str, revision: str, *, weights: bool, code: bool) -> Path:
    """The local snapshot of a hub model; downloads what is not in the cache: safetensors only, no subfolders."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    commit = hub_commit(repo, revision)
    with _hub_errors(repo, revision):
        known = try_to_load_from_cache(repo, "config.json", revision=commit)
    if isinstance(known, str) and _complete(Path(known).parent, weights=weights, code=code):
        files.refuse_adapter(Path(known).parent)
        return Path(known).parent
    _ask_hub(repo, commit)
    wanted = [*files.SETTINGS, *files.VOCABULARY, "adapter_config.json"]
    wanted += ["*.safetensors", "model.safetensors.index.json"] if weights else []
    wanted += ["*.py"] if code else []
    with _hub_errors(repo, revision):
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*", "consolidated*"]))
    if folder.name != commit:
        raise MachineError(f"{repo} moved from {commit} to {folder.name} while it was read: run again")
    files.refuse_adapter(folder)
    if weights:
        files.weight_files(folder)
    return folder


def _complete(folder: Path, *, weights: bool, code: bool) -> bool:
    with contextlib.suppress(UsageError):
        found = not weights or bool(files.weight_files(folder))
        return found and files.has_tokenizer(folder) and (not code or any(folder.glob("*.py")))
    return False


@contextlib.contextmanager
def _hub_errors(repo: str, revision: str) -> Iterator[None]:
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError as error:
        consent = "asks for consent: give it on its hub page, then `hf auth login`"
        raise MachineError(f"{repo} {consent}; or {ELSEWHERE}") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise UsageError(f"the hub has no model {repo} at {revision} (or a private one: `hf auth login`)") from error
    except Exception as error:  # the transport's errors have no common class across its versions
        reason = f"{repo} is not in the local hub cache and {constants.ENDPOINT} does not answer ({one_line(error)})"
        raise MachineError(f"{reason}: {ELSEWHERE}") from error
