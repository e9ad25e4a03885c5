"""What two manifests say otherwise: settings, code and libraries, data, model, machine. Reads no rows and loads nothing.

A key that one of the two lacks is no difference: the older one was written before it was noted.
"""

from collections.abc import Callable, Mapping
from typing import Any

ABSENT = "-"  # a setting that another model, dataset, policy or task has alone
GROUPS = ("model", "dataset", "policy", "task")
BOOKKEEPING = ("results_dir", "workers", "force", "retry", "dry_run")  # how a run is made, not what it measures
TEXTS = 5  # that are named one by one
Flat = dict[str, Any]


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Part of the manifests -> key -> both values, where they differ; every part is there, empty where all agree."""
    found = {name: _unlike(part(ours), part(theirs)) for name, part in PARTS.items()}
    found["settings"] |= _of_one_alone(ours, theirs)
    found["data"] |= _texts(ours, theirs)
    return found


def flat(value: Any, prefix: str = "") -> Flat:
    """Nested objects as dotted keys; anything else than an object has none."""
    made: Flat = {}
    for key, item in value.items() if isinstance(value, Mapping) else ():
        made |= flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return made


def _unlike(ours: Flat, theirs: Flat) -> dict[str, tuple[Any, Any]]:
    return {key: (ours[key], theirs[key]) for key in ours if key in theirs and ours[key] != theirs[key]}


def _object(manifest: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The object at that place of a manifest, empty where there is none."""
    found: Any = manifest
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def _class(manifest: Mapping[str, Any], group: str) -> str:
    """Of the package's own classes the name alone: the module it stood in once is no difference."""
    target = str(_object(manifest, "config", group).get("_target_", ABSENT))
    return target.rpartition(".")[2] if target.startswith("msrnn_bench.") else target


def _settings(manifest: Mapping[str, Any]) -> Flat:
    """The configuration, in it what it was resolved to: the state size that the full model does not have, the default context."""
    config = {key: value for key, value in _object(manifest, "config").items() if key not in BOOKKEEPING}
    given = {key: value for key, value in flat(config).items() if not key.split(".")[-1].startswith("_")}
    resolved = {key: value for key, value in _object(manifest, "settings").items() if key not in ("model", "dataset")}
    own = _object(manifest, "settings", "policy", "settings")
    policy = {key: value for key, value in _object(manifest, "settings", "policy").items() if key != "settings"}
    classes = {f"{group}.class": _class(manifest, group) for group in ("model", "dataset")}
    made = {**classes, **given, **flat({**resolved, "policy": {**policy, **own}})}
    return {key: value for key, value in made.items() if not key.startswith("model.facts.")}


def _of_one_alone(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that only one has because what it chose is of another class."""
    a, b = _settings(ours), _settings(theirs)
    other = [group for group in GROUPS if _class(ours, group) != _class(theirs, group)]
    alone = sorted(key for key in a.keys() ^ b.keys() if key.partition(".")[0] in other)
    return {key: (a.get(key, ABSENT), b.get(key, ABSENT)) for key in alone}


def _versions(manifest: Mapping[str, Any]) -> Flat:
    git = _object(manifest, "git")
    commit = {"commit": f"{git['commit']}{'' if git.get('clean') else ' with changes'}"} if git.get("commit") else {}
    return {**commit, **flat(_object(manifest, "versions"))}


def _data(manifest: Mapping[str, Any]) -> Flat:
    return {key: value for key, value in flat(_object(manifest, "dataset")).items() if key != "listed"}


def _texts(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Documents of one name and two contents: the first few."""
    a, b = ({d.get("name"): d.get("sha256") for d in _listed(manifest)} for manifest in (ours, theirs))
    unlike = [name for name in a if name in b and a[name] != b[name]]
    return {f"text {name}": (a[name], b[name]) for name in unlike[:TEXTS]}


def _listed(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    listed = _object(manifest, "dataset").get("listed")
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def _model(manifest: Mapping[str, Any]) -> Flat:
    """By content, and how its tokenizer handles words; what the guard measured of it is no property of the model."""
    known = {**_object(manifest, "settings", "model"), **_object(manifest, "model")}
    return flat({key: value for key, value in known.items() if key not in ("verified", "device")})


def _machine(manifest: Mapping[str, Any]) -> Flat:
    device = _object(manifest, "model").get("device")
    return {**flat(_object(manifest, "machine")), **({} if device is None else {"device": device})}


PARTS: dict[str, Callable[[Mapping[str, Any]], Flat]] = {
    "settings": _settings, "versions": _versions, "data": _data, "model": _model, "machine": _machine,
}  # fmt: skip
