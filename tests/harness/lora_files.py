"""LoRA files in the dialects of other tools, of random factors for a base's own modules."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from dreambooth.formats.lora_keys import LoraModule, lora_module
from dreambooth.models.adapter import module_of
from dreambooth.models.base import Base
from dreambooth.models.low_rank import Factors

Tensors = dict[str, torch.Tensor]


def layers_of(base: Base) -> list[LoraModule]:
    """Return every linear and convolution layer of UNet and text encoder."""
    return [
        lora_module(part, f"{path}.weight")
        for part in ("unet", "text_encoder")
        for path, layer in getattr(base, part).named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    ]


def random_factors(
    base: Base, modules: Iterable[LoraModule], rank: Callable[[int], int] = lambda number: 2, seed: int = 0
) -> dict[str, Factors]:
    """Return factors for these modules, of the rank that goes with a module's number."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, module in enumerate(modules):
        shape = module_of(base, module).weight.shape
        up = torch.randn(shape[0], rank(number), *[1] * (len(shape) - 2), generator=generator)
        down = torch.randn(rank(number), *shape[1:], generator=generator)
        found[module.name] = Factors(0.1 * up, 0.1 * down)
    return found


def kohya(factors: Mapping[str, Factors], alphas: Mapping[str, float] | None = None) -> Tensors:
    """Return the tensors of sd-scripts' dialect, without alphas where none are given."""
    tensors = {}
    for name, one in factors.items():
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = one.down, one.up
        if alphas is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alphas[name])
    return tensors


def dotted(modules: Iterable[LoraModule], factors: Mapping[str, Factors], ends: tuple[str, str]) -> Tensors:
    """Return the tensors under diffusers' names, `unet.PATH` and `text_encoder.PATH`, with these ends for both."""
    tensors = {}
    for module in modules:
        path = module.part + "." + module.weight.removesuffix(".weight").removeprefix("text_model.")
        tensors[path + ends[0]], tensors[path + ends[1]] = factors[module.name].down, factors[module.name].up
    return tensors


def written(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """Write the tensors and return the path."""
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata)
    return path
