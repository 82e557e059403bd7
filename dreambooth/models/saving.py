"""Writes a model as a diffusers folder, as every save of a run does: other tools open it, including transformers 4."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.formats.layout import MODEL_INDEX, Part
from dreambooth.formats.safetensors_file import stored_dtype, write_safetensors
from dreambooth.models.base import Base
from dreambooth.models.card import BaseCard

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_SHARD_BYTES = 9 * 10**6  # for the starter alone: files in its repository stay under 10 MB


def write_model(
    folder: Path,
    base: Base,
    dtype: "torch.dtype",
    card: BaseCard | None = None,
    weights: "Mapping[str, Mapping[str, Tensor]] | None" = None,
) -> None:
    """Fill `folder` with a complete diffusers model in `dtype`; the base's models are not changed.

    `card` is the base's own by default; `weights` replace the models' by part and name. The text encoder's keys have
    `text_model.` and the tokenizer its vocab.json and merges.txt, so that transformers 4 opens the folder too.
    """
    import diffusers

    layout, modules, card = base.family.layout, base.modules(), card or base.card
    weights = weights or {part: module.state_dict() for part, module in modules.items()}
    for part in layout.parts:
        save = _save_text_encoder if part.library == "transformers" else _save_diffusers_part
        save(folder / part.name, part, modules[part.name], weights[part.name], dtype, card)
    for name in layout.tokenizers:
        _save_tokenizer(folder / name, getattr(base, name))
    scheduler = getattr(diffusers, layout.scheduler)
    scheduler.from_config(dict(base.noise_scheduler_config)).save_pretrained(folder / "scheduler")
    (folder / "card.json").write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n", "utf-8")
    index = layout.model_index(diffusers.__version__, base.family.index_options)
    (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _save_diffusers_part(
    folder: Path, part: Part, module: Any, weights: "Mapping[str, Tensor]", dtype: "torch.dtype", card: BaseCard
) -> None:
    _save_config(folder, module)
    _save_weights(folder, part.weights_stem, weights, dtype, card)


def _save_config(folder: Path, module: Any) -> None:
    """Save a part's configuration without the path from which it was once read."""
    module.save_config(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("_name_or_path", None)
    config["_class_name"] = config["_class_name"].removeprefix("FSDP")  # as torch names a model that it has sharded
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _save_weights(
    folder: Path, stem: str, weights: "Mapping[str, Tensor]", dtype: "torch.dtype", card: BaseCard
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not card.is_toy:
        # Tensor by tensor: a second copy of a full-size part in half precision would take 2 GB.
        write_safetensors(folder / f"{stem}.safetensors", weights, {"format": "pt"}, float_dtype=dtype)
        return
    from huggingface_hub import save_torch_state_dict

    cast = {
        name: tensor.detach().to("cpu", stored_dtype(tensor, dtype)).contiguous() for name, tensor in weights.items()
    }
    pattern = stem + "{suffix}.safetensors"
    save_torch_state_dict(cast, folder, filename_pattern=pattern, max_shard_size=MAX_SHARD_BYTES)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # the library leaves them readable by their owner alone, which no other file here is


def _save_text_encoder(
    folder: Path, part: Part, text_encoder: Any, weights: "Mapping[str, Tensor]", dtype: "torch.dtype", card: BaseCard
) -> None:
    own = ("text_model.", "text_projection.")
    named = {name if name.startswith(own) else f"text_model.{name}": tensor for name, tensor in weights.items()}
    _save_weights(folder, part.weights_stem, named, dtype, card)
    config = text_encoder.config.to_dict() | {
        "architectures": [part.class_name],
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    for name in ("dtype", "_name_or_path"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", "utf-8")


def _save_tokenizer(folder: Path, tokenizer: Any) -> None:
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        # The tokenizer remembers its last padding, and would write that into its file.
        backend.no_padding()
        backend.no_truncation()
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
