"""A taught model dialled back, or up: base + s (taught - base), for the UNet and the text encoder apart.

Weights between the two make whole models (Wortsman et al. 2022, WiSE-FT, arXiv 2109.01903), so a run that went too far
is weakened without another training.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.durable import scratch_folder
from dreambooth.errors import BaseModelError
from dreambooth.json_file import read_object
from dreambooth.models.base import Base, load_base
from dreambooth.models.saving import write_model


@dataclass(frozen=True)
class Strength:
    """How much of what each part learned counts: 0 is the base, 1 the model as it was taught, more overdoes it."""

    unet: float = 1.0
    text_encoder: float = 1.0

    @property
    def is_whole(self) -> bool:
        """Return whether the model stays as it was taught."""
        return self.unet == 1 and self.text_encoder == 1

    def __str__(self) -> str:
        return f"unet {self.unet:g}, text encoder {self.text_encoder:g}"


WHOLE = Strength()


def load_at_strength(
    model_dir: str, strength: Strength, *, token: str | None = None, models_dir: Path | None = None
) -> Base:
    """Load a step folder with its change against the base it was taught from taken at this strength.

    Raises BaseModelError for a model whose base is not known or cannot be had. Needs both in memory meanwhile.
    """
    taught = load_base(model_dir, token=token, models_dir=models_dir)
    if strength.is_whole:
        return taught
    base = load_base(**_base_of(Path(model_dir)), token=token, models_dir=models_dir)
    _mix(taught.unet, base.unet, strength.unet, model_dir)
    _mix(taught.text_encoder, base.text_encoder, strength.text_encoder, model_dir)
    return taught


def _base_of(model_dir: Path) -> dict[str, Any]:
    """Return what the model was taught from, as its settings say."""
    try:
        told = read_object(model_dir / "args.json")
        found = {name: told.get(name) for name in ("revision", "variant")}
        return {"name": str(told["pretrained_model_name_or_path"]), **found}
    except (OSError, ValueError, KeyError, TypeError):
        raise BaseModelError(
            f"{model_dir} cannot be made weaker or stronger.", "Nothing says what it was taught from: no args.json.",
            "Choose a step of a run, or leave both strengths at 1.",
        ) from None  # fmt: skip


def _mix(taught: Any, base: Any, strength: float, model_dir: str) -> None:
    """Move the taught weights in place to base + strength (taught - base)."""
    if strength == 1:
        return
    own, before = taught.state_dict(), base.state_dict()
    if own.keys() != before.keys() or any(own[name].shape != before[name].shape for name in own):
        raise BaseModelError(
            f"{model_dir} is not of the base that its settings name.", "Their weights differ in names or shapes.",
            "Leave both strengths at 1.",
        )  # fmt: skip
    for name, weight in own.items():
        if weight.is_floating_point():
            # lerp is exact at both ends.
            weight.copy_(before[name].to(weight).lerp(weight, strength))


@contextmanager
def folder_at_strength(model_dir: Path, strength: Strength, beside: Path, **options: Any) -> Iterator[Path]:
    """Yield a diffusers folder of the model at this strength, in the number format of the taught one.

    It lies beside the given path while it is used, takes as much disk as the model, and is the model's own folder where
    the strength is whole.
    """
    if strength.is_whole:
        yield model_dir
        return
    import torch

    mixed = load_at_strength(str(model_dir), strength, **options)
    weights = next(iter(sorted((model_dir / "unet").glob("*.safetensors"))), None)
    with scratch_folder(beside) as folder:
        write_model(
            folder,
            unet=mixed.unet,
            text_encoder=mixed.text_encoder,
            vae=mixed.vae,
            tokenizer=mixed.tokenizer,
            scheduler_config=mixed.noise_scheduler_config,
            dtype=torch.float32 if weights is None else _dtype_of(weights),
            card=dataclasses.replace(mixed.card, step=_step_of(model_dir), strength=str(strength)),
        )
        shutil.copy(model_dir / "args.json", folder / "args.json")
        yield folder


def _step_of(model_dir: Path) -> int | None:
    return int(model_dir.name) if model_dir.name.isdecimal() else None


def _dtype_of(file: Path) -> Any:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        return weights.get_tensor(next(iter(weights.keys()))).dtype
