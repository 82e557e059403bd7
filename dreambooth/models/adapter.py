"""Low-rank factors over a frozen base, added by hooks: y = W x + s up(down(x)) (Hu et al. 2021, LoRA, arXiv 2106.09685,
eq. 3, with alpha equal to the rank).

The base's modules keep their names and weights, so files, samplers and the moving average need no changes, and without
the hooks the base is bit for bit what it was. Hooks run inside gradient checkpointing and torch.compile.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth import rng
from dreambooth.formats.lora_keys import PREFIXES, LoraModule, LoraTargets, lora_module, lora_modules
from dreambooth.models.low_rank import Factors
from dreambooth.models.strength import WHOLE, Strength

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from dreambooth.models.base import Base


@dataclass(frozen=True)
class AdaptedModule:
    """A module of the base with the factors added to it."""

    place: LoraModule
    factors: Factors


class Adapter:
    """The factors of one LoRA on the modules of one base; attached from creation until `detach`."""

    def __init__(
        self, base: "Base", modules: Iterable[AdaptedModule], strength: Strength = WHOLE, notice: str = ""
    ) -> None:
        """Attach these factors, which are on the device of the base's weights; `notice` is reported at each use."""
        self.modules, self.notice = list(modules), notice
        self._handles: list[RemovableHandle] = []
        for one in self.modules:
            amount = strength.of(one.place.part)
            if amount:
                module = module_of(base, one.place)
                self._handles.append(module.register_forward_hook(_hook(one.factors, amount)))

    def detach(self) -> None:
        """Remove the hooks from the base."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def module_of(base: "Base", place: LoraModule) -> Any:
    """Return the module whose weight this LoRA module changes."""
    return getattr(base, place.part).get_submodule(place.weight.removesuffix(".weight"))


def places_of(base: "Base", targets: LoraTargets, parts: Iterable[str]) -> list[LoraModule]:
    """Return the modules of these parts that a LoRA with these targets changes, in the order of their names."""
    weights = {part: getattr(base, part).state_dict() for part in parts}
    return lora_modules(weights, targets, base.family.layout.unseen_layers)


def unseen_modules(base: "Base") -> set[str]:
    """Return the names of the modules that affect no image: other tools' LoRAs have them, without effect."""
    parts = base.family.layout.learning_parts
    weights = {part: getattr(base, part).state_dict() for part in parts}
    return {one.name for one in lora_modules(weights, "all")} - {one.name for one in places_of(base, "all", parts)}


def new_factors(weight: "Tensor", rank: int, seed: int, number: int) -> Factors:
    """Return factors for a weight (out, in, ...) whose product is zero, fp32 on its device; `number` is the module's.

    down is uniform like torch's linear layers, U(-1/sqrt(in), 1/sqrt(in)); up is zero.
    """
    import torch

    num_inputs = math.prod(weight.shape[1:])
    down = torch.empty(rank, *weight.shape[1:])
    down.uniform_(-1, 1, generator=rng.generator(seed, "adapter", number)).mul_(num_inputs**-0.5)
    up = torch.zeros(weight.shape[0], rank, *[1] * (weight.dim() - 2))
    return Factors(up.to(weight.device), down.to(weight.device))


def merge(base: "Base", modules: Iterable[AdaptedModule], strength: Strength = WHOLE) -> None:
    """Add the factors to the base's own weights in place, computed in fp32."""
    import torch

    with torch.no_grad():
        for one in modules:
            if amount := strength.of(one.place.part):
                weight = module_of(base, one.place).weight
                weight.copy_(weight.float() + amount * one.factors.product().to(weight.device))


def _hook(factors: Factors, strength: float) -> "Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]":
    """Return a hook that adds strength x up(down(x)) to a module's output.

    The factors are cast to the input's number format, not the input to theirs: q, k and v then share one input for
    backward, and gradients come back in fp32 (the other way keeps half as much again).
    """
    import torch

    def add_linear(module: "nn.Module", inputs: "tuple[Tensor, ...]", output: "Tensor") -> "Tensor":
        x = inputs[0]
        low = torch.nn.functional.linear(x, factors.down.to(x.dtype))
        # One pass over the output, including the strength.
        added: Tensor = torch.addmm(
            output.flatten(0, -2), low.flatten(0, -2), factors.up.to(low.dtype).t(), alpha=strength
        )
        return added.view_as(output)

    def add_convolution(module: "nn.Module", inputs: "tuple[Tensor, ...]", output: "Tensor") -> "Tensor":
        x: Any = inputs[0]
        layer: Any = module
        low = torch.nn.functional.conv2d(x, factors.down.to(x.dtype), None, layer.stride, layer.padding, layer.dilation)
        return output + strength * torch.nn.functional.conv2d(low, factors.up.to(low.dtype))

    return add_convolution if factors.down.dim() > 2 else add_linear


@dataclass(frozen=True)
class Fit:
    """A LoRA matched with a base: its factors with their modules, and the modules that do not match.

    misshapen: names of modules whose weight has another shape in the base.
    """

    modules: tuple[AdaptedModule, ...]
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]


def layers_by_name(parts: "Mapping[str, nn.Module]") -> dict[str, tuple[LoraModule, tuple[int, ...]]]:
    """Return every linear and convolution layer of these parts by its name in LoRA files, with its weight's shape."""
    import torch

    return {
        place.name: (place, tuple(layer.weight.shape))
        for part, model in parts.items()
        if part in PREFIXES
        for path, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        for place in (lora_module(part, f"{path}.weight"),)
    }


def fitted(base: "Base", factors: Mapping[str, Factors]) -> Fit:
    """Return which of these factors, by module name, fit which weights of a base.

    Factors of a linear layer fit a 1x1 convolution, and the other way around: SD 1.x and 2.x, and tools, differ in
    which it is.
    """
    layers = layers_by_name({part: getattr(base, part) for part in base.family.layout.learning_parts})
    modules, misshapen = [], []
    for name in factors.keys() & layers.keys():
        one, (place, shape) = factors[name], layers[name]
        if one.shape != shape and one.shape[:2] == shape[:2] and math.prod(one.shape) == math.prod(shape):
            rank = len(one.down)
            one = Factors(one.up.reshape(-1, rank, *shape[2:]), one.down.reshape(rank, *shape[1:]))
        if one.shape == shape:
            modules.append(AdaptedModule(place, one))
        else:
            misshapen.append(name)
    modules.sort(key=lambda one: one.place.name)
    return Fit(tuple(modules), tuple(sorted(factors.keys() - layers.keys())), tuple(sorted(misshapen)))
