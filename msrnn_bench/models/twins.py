"""Twins as models: any causal class of transformers in the small, weights drawn by the seed, so that a theorem about a class can
be tried without a download. What a twin is says multistate/twin.py.

Importing this imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from msrnn_bench.errors import UsageError, one_line
from msrnn_bench.models import headers
from msrnn_bench.models.sources import Model
from msrnn_bench.models.tokenizer import folded_tokenizer

# What a configuration's defaults leave open, or have too large for a tiny model; by model type.
OPEN: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "mamba2": {"expand": 1},
    "xmod": {"default_language": "en_XX"},
    "reformer": {"axial_pos_embds": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "zamba2": {"hybrid_layer_ids": [1]},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": [96] * 35},
}


@dataclass(frozen=True, kw_only=True)
class Twin(Model):
    """The class that `architecture` names (LlamaForCausalLM) with its default configuration, shrunk. Its tokenizer folds the
    bytes of a text into the few ids it has, for random weights have no language to lose."""

    name: str | None = None  # type: ignore[assignment]
    architecture: str = "LlamaForCausalLM"  # type: ignore[assignment]
    weights: Literal["random"] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            object.__setattr__(self, "name", f"{self.architecture} (twin)")

    def identity(self) -> dict[str, Any]:
        """The class; the libraries whose defaults and draws it rests on; and how it is shrunk."""
        spec = find_spec("msrnn_bench.multistate")
        assert spec is not None and spec.submodule_search_locations
        how = Path(spec.submodule_search_locations[0]) / "twin.py"
        libraries = {library: version(library) for library in ("torch", "transformers")}
        return {"twin": self.architecture, **libraries, "how": hashlib.sha256(how.read_bytes()).hexdigest()}

    def fingerprint(self, *, seed: int = 0) -> dict[str, Any]:
        return {**self.identity(), "weights": self.weights, "seed": seed}

    def folder(self, *, weights: bool) -> Path:
        raise UsageError("a twin has no files: choose model=local to read a folder")

    def config(self) -> Any:
        """The class's default configuration, shrunk. Its name says that it is causal; bounded() has the last word."""
        from msrnn_bench.multistate import twin

        kind = self._kind()
        try:
            with headers.quiet():
                return twin.shrunk(default_config(kind), tight=False)
        except Exception as error:  # whatever a class raises whose defaults do not fit together
            raise UsageError(f"{self.architecture} has no tiny twin ({one_line(error)}): take another class") from error

    def _kind(self) -> Any:
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

        names = {known if isinstance(known, str) else known[0] for known in KNOWN.values()}
        if self.architecture not in names:
            from difflib import get_close_matches

            near = get_close_matches(self.architecture, names, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UsageError(
                f"model.architecture={self.architecture} is no causal class of transformers {transformers.__version__}{hint}: "
                "docs/models.md lists them"
            )
        return getattr(transformers, self.architecture)

    def _drawn(self, config: Any, dtype: Any, seed: int) -> Any:
        """Drawn in float64, then rounded; the rotary frequencies and other tables stay in float32 below that, as loading
        leaves them."""
        import torch

        from msrnn_bench.multistate import twin

        model = twin.build(self._kind(), config, seed)
        if dtype != torch.float64:
            model = model.float()
            for parameter in model.parameters():
                parameter.data = parameter.data.to(dtype)
        model.config.dtype = dtype
        return model

    def skeleton(self, config: Any) -> Any:
        return self._kind()(config)  # its own class: AutoModel does not take every text configuration (Emu3's)

    def _tokenizer(self, folder: Path | None, config: Any) -> Any:
        from msrnn_bench.multistate.probe import special_ids

        marks = set(special_ids(config.to_dict()))
        return folded_tokenizer([i for i in range(config.get_text_config(decoder=True).vocab_size) if i not in marks])


def default_config(kind: Any) -> Any:
    """The configuration that a class has by default, as a decoder's; what it leaves open is filled in."""
    config = kind.config_class()
    for key, value in OPEN.get(config.model_type, {}).items():
        setattr(config, key, value)
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    return config
