"""Models on the Hugging Face hub: their files in a local folder, all of them or none.

Without a network every function fails within seconds and names the local alternative. Imports the hub's library where
it is used.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msrnn_bench.errors import MachineError, UsageError, one_line, unless_looking
from msrnn_bench.hub.asking import NoAnswerError, patiently
from msrnn_bench.hub.commits import Commit, commit
from msrnn_bench.models import files

ELSEWHERE = "use model=smollm2, or a folder that you have: model=local model.path=FOLDER"
SKIPPED = ["*/*", "consolidated*"]  # subfolders, and the same weights in another form


def hub_commit(repo: str, revision: str) -> Commit:
    """The commit behind a revision."""
    with _hub_errors(repo, revision):
        return commit("model", repo, revision)


def hub_folder(repo: str, revision: str, *, weights: bool, code: bool) -> Path:
    """The local snapshot of a hub model; downloads what is not in the cache: safetensors only, no subfolders."""
    from huggingface_hub import snapshot_download

    found = hub_commit(repo, revision).id
    wanted = [*files.SETTINGS, *files.VOCABULARY, "adapter_config.json"]
    wanted += ["*.safetensors", "model.safetensors.index.json"] if weights else []
    wanted += ["*.py"] if code else []
    patterns: dict[str, Any] = {"allow_patterns": wanted, "ignore_patterns": SKIPPED}
    folder = _cached(repo, found, patterns, weights=weights, code=code)
    if folder is None:
        unless_looking(f"{repo} is not in the local hub cache: a run downloads it")
        with _hub_errors(repo, revision):
            folder = Path(patiently("model", repo, lambda: snapshot_download(repo, revision=found, **patterns)))
    files.refuse_adapter(folder)
    if weights:
        files.weight_files(folder)
    return folder


def _cached(repo: str, found: str, patterns: dict[str, Any], *, weights: bool, code: bool) -> Path | None:
    """The snapshot, if all is there. The library holds it against the listing that it keeps of what it downloads; of files that
    came one by one it keeps none, and then those that a model cannot do without must be there."""
    from huggingface_hub import errors, snapshot_download

    with contextlib.suppress(UsageError, errors.LocalEntryNotFoundError, errors.HFValidationError):
        folder = Path(snapshot_download(repo, revision=found, local_files_only=True, **patterns))
        read = not weights or bool(files.weight_files(folder))
        known = (folder / "config.json").is_file() and files.has_tokenizer(folder)
        return folder if read and known and (not code or any(folder.glob("*.py"))) else None
    return None


@contextlib.contextmanager
def _hub_errors(repo: str, revision: str) -> Iterator[None]:
    from huggingface_hub import constants, errors

    try:
        yield
    except (UsageError, KeyboardInterrupt):
        raise
    except errors.GatedRepoError as error:
        consent = "asks for consent: give it on its hub page, then `hf auth login`"
        raise MachineError(f"{repo} {consent}; or {ELSEWHERE}") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise UsageError(f"the hub has no model {repo} at {revision} (or a private one: `hf auth login`)") from error
    except Exception as error:  # the transport's errors have no common class across its versions
        said = str(error) if isinstance(error, NoAnswerError) else f"does not answer ({one_line(error)})"
        raise MachineError(f"{repo} is not in the local hub cache and {constants.ENDPOINT} {said}: {ELSEWHERE}") from error
