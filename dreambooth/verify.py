"""An export is held to the folder it was made from before it is called done: every name, every number, one picture.

What is read here is the written file itself, by the way that a base is read from such a file.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import rng
from dreambooth.errors import ExportError
from dreambooth.export.single_file import PARTS, Precision, Written, convert, float_dtype_of
from dreambooth.formats.ldm import from_ldm, modern_vae_key, without_text_model
from dreambooth.formats.safetensors_file import Cast, same_bits, stored_dtype
from dreambooth.models.base import load_tokenizer, quiet_libraries
from dreambooth.models.strength import WHOLE, Strength, folder_at_strength
from dreambooth.models.weights import part_weights, read_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PROMPT, TIMESTEP, LATENT_SIZE = "a photo", 500, (4, 4)


@dataclass(frozen=True)
class Verdict:
    """What was found equal: tensors, their bytes, and a picture made of both; without one, why there is none."""

    path: Path
    num_tensors: int
    num_bytes: int
    no_picture: str = ""

    def __str__(self) -> str:
        picture = f"; {self.no_picture}" if self.no_picture else ", and a picture made from it is the folder's"
        return f"Read again: all {self.num_tensors} tensors are there and equal{picture}."


def convert_verified(
    model_dir: Path,
    out_path: Path,
    *,
    precision: Precision | None = None,
    use_safetensors: bool | None = None,
    strength: Strength = WHOLE,
    models_dir: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Write the folder as one file that was read again and found equal to it, and return what was compared.

    With another strength than 1 it is the folder of base + s (taught - base), which is made for it and removed again.

    Raises ExportError, leaving no file, when something differs; and for what `convert` raises it.
    """
    with folder_at_strength(model_dir, strength, out_path, models_dir=models_dir) as folder:
        return _convert_verified(folder, out_path, precision, use_safetensors, on_progress)


def _convert_verified(
    model_dir: Path,
    out_path: Path,
    precision: Precision | None,
    use_safetensors: bool | None,
    on_progress: Callable[[int, int], None] | None,
) -> Verdict:
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(1) as beside:
        # The folder's picture needs nothing of the file: it is made while that is written.
        picture = beside.submit(folder_picture, model_dir, float_dtype_of(precision))

        def check(written: Written) -> None:
            verdicts.append(verify(written, picture.result()))

        path = convert(
            model_dir, out_path, precision=precision, use_safetensors=use_safetensors, on_progress=on_progress,
            check=check,
        )  # fmt: skip
    (verdict,) = verdicts
    return dataclasses.replace(verdict, path=path)


def verify(written: Written, picture: "Tensor | None") -> Verdict:
    """Hold a written file to its model and to the folder's picture, if there is one.

    Raises ExportError naming what differs. Costs no copy of the model.
    """
    model, path = written.model, written.path
    weights = read_weights(path, is_safetensors=written.is_safetensors)
    strange = sorted(weights.keys() ^ model.expected_names)
    if strange:
        raise _differs(path, f"Missing or not the original's: {', '.join(strange[:3])}.")
    with ThreadPoolExecutor(1) as beside:
        compared = beside.submit(_first_difference, written, weights)
        kinds = {name: (stored_dtype(one, written.float_dtype), one.shape) for name, one in model.weights.items()}
        misshapen = [name for name, one in weights.items() if (one.dtype, one.shape) != kinds[name]]
        same_picture = (
            misshapen or picture is None or same_bits(_picture(model.folder, from_ldm(weights), None), picture)
        )
        different = misshapen[:1] or compared.result()
    if different:
        raise _differs(path, f"{different[0]} is not the folder's.")
    if not same_picture:
        raise _differs(path, "A picture made from it is not the one made from the folder.")
    num_bytes = sum(tensor.nbytes for tensor in weights.values())
    without = "no picture was compared: the folder has no tokenizer" if picture is None else ""
    return Verdict(path, len(weights), num_bytes, without)


def _first_difference(written: Written, weights: "Mapping[str, Tensor]") -> list[str]:
    """Return the name of a tensor whose bits are not those of the folder's in the file's format, if there is one."""
    cast, folder = Cast(), written.model.weights
    differing = (name for name, one in weights.items() if not same_bits(cast(folder[name], one.dtype), one))
    return list(itertools.islice(differing, 1))


def _differs(path: Path, why: str) -> ExportError:
    return ExportError(
        "The written file is not the model.",
        why,
        "It is a defect of the disk or of ours: try another place, or tell us.",
    )


# The picture ---------------------------------------------------------------------------------------------------------

Parts = tuple["dict[str, Tensor]", "dict[str, Tensor]", "dict[str, Tensor]"]


def folder_picture(folder: Path, float_dtype: "torch.dtype | None") -> "Tensor | None":
    """Return the picture of a folder whose floats are rounded to a number format, None without a tokenizer.

    Raises BaseModelError and the libraries' own errors for a folder that is no model.
    """
    return _picture(folder, _parts_of(folder), float_dtype) if (folder / "tokenizer").is_dir() else None


def _parts_of(folder: Path) -> Parts:
    unet, vae, text_encoder = (part_weights(folder / part) for part in PARTS)
    return unet, {modern_vae_key(name): tensor for name, tensor in vae.items()}, without_text_model(text_encoder)


def _picture(folder: Path, parts: Parts, rounded_to: "torch.dtype | None") -> "Tensor":
    """Make a small picture of these weights, (1, 3, 32, 32), computed in fp32: from noise, by one step, unguided.

    It is as small as it can be and still goes through every layer: reading the weights is what it costs.
    """
    quiet_libraries()
    import torch
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet_weights, vae_weights, text_weights = parts
    with init_empty_weights(include_buffers=False):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    prefix = "text_model." if hasattr(text_encoder, "text_model") else ""
    _take_up(unet, unet_weights, rounded_to)
    _take_up(vae, vae_weights, rounded_to)
    _take_up(text_encoder, {prefix + name: tensor for name, tensor in text_weights.items()}, rounded_to)
    token_ids = load_tokenizer(str(folder / "tokenizer"), None)(PROMPT, return_tensors="pt").input_ids
    noise = torch.randn((1, unet.config.in_channels, *LATENT_SIZE), generator=rng.generator(0, "generation"))
    with torch.no_grad():
        states = text_encoder.eval()(token_ids)[0]
        prediction = unet.eval()(noise, TIMESTEP, encoder_hidden_states=states).sample
        picture: Tensor = vae.eval().decode(noise - prediction).sample
    return picture


def _take_up(module: Any, weights: "Mapping[str, Tensor]", rounded_to: "torch.dtype | None") -> None:
    """Have a module compute with these weights in fp32, of which it holds one layer's at a time.

    At rest it holds one zero in every place, so that it looks like any model in fp32 and takes no memory.
    """
    import torch

    module.load_state_dict(
        {name: torch.zeros(()).expand(tensor.shape) for name, tensor in weights.items()}, assign=True
    )
    memory: dict[str, tuple[Cast, Cast]] = {}
    for layer_name, layer in module.named_modules():
        if at_rest := dict(layer.named_parameters(recurse=False)):
            prefix = f"{layer_name}." if layer_name else ""
            stored = {name: weights[prefix + name] for name in at_rest}
            # Layers without others inside come one after the other: they share their memory.
            shared = {} if any(layer.children()) else memory
            layer.register_forward_pre_hook(functools.partial(_fill, stored, rounded_to, shared))
            layer.register_forward_hook(functools.partial(_empty, at_rest))


def _fill(
    stored: "Mapping[str, Tensor]",
    rounded_to: "torch.dtype | None",
    memory: dict[str, tuple[Cast, Cast]],
    layer: Any,
    inputs: object,
) -> None:
    import torch

    for name, tensor in stored.items():
        rounding, widening = memory.setdefault(name, (Cast(), Cast()))
        # Always a copy: a mapped tensor lies as its file has it, and kernels add up otherwise on another alignment.
        wide = widening.copy(rounding(tensor, rounded_to or tensor.dtype), torch.float32)
        setattr(layer, name, torch.nn.Parameter(wide, requires_grad=False))


def _empty(at_rest: Mapping[str, Any], layer: Any, inputs: object, output: object) -> None:
    for name, parameter in at_rest.items():
        setattr(layer, name, parameter)
