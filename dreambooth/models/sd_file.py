"""The parts of SD 1.x or 2.x from the tensors of a single file in the original layout."""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import rng
from dreambooth.errors import BaseModelError
from dreambooth.formats.layout import Layout
from dreambooth.formats.ldm import from_ldm
from dreambooth.models.family import FileParts
from dreambooth.models.sd import SD1_FILE, SD15_CONFIGS, SD15_SCHEDULER, SINGLE_FILES, SingleFile
from dreambooth.models.weights import filled

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def starter_folder() -> Path:
    """Return the folder of the embedded model."""
    return Path(__file__).parent / "starter"


def parts_of(
    weights: "Mapping[str, Tensor]", header: Mapping[str, str], layout: Layout, as_stored: bool = False
) -> FileParts:
    """Return the parts of a file of this family; raises KeyError, IndexError or RuntimeError for wrong tensors."""
    assumed = SINGLE_FILES[layout.family]
    unet_weights, vae_weights, text_weights = from_ldm(weights)
    unet = _unet_of(unet_weights, assumed, as_stored=as_stored)
    text_encoder = _text_encoder_of(text_weights, assumed, as_stored=as_stored)
    parts = {"unet": unet, "text_encoder": text_encoder, "vae": vae_of(vae_weights)}
    prediction_type = _prediction_type(unet, header, assumed)
    v_px = assumed.v_px if prediction_type == "v_prediction" else None
    native_px = native_px_in(header) or v_px or _own_px(unet)
    unet.register_to_config(sample_size=native_px // 8)
    return FileParts(
        layout, parts, SD15_SCHEDULER | {"prediction_type": prediction_type},
        text_weights["embeddings.token_embedding.weight"].shape[0], native_px,
        {} if assumed.pad_token is None else {"tokenizer": assumed.pad_token},
    )  # fmt: skip


def _unet_of(weights: "dict[str, Tensor]", assumed: SingleFile, *, as_stored: bool) -> Any:
    """Build the UNet these tensors fit."""
    from diffusers import UNet2DConditionModel

    config = _config("unet", _widths(weights, "down_blocks"), assumed)
    return filled(lambda: UNet2DConditionModel.from_config(config), weights, as_stored=as_stored)


def vae_of(weights: "dict[str, Tensor]") -> Any:
    """Build the VAE these tensors fit."""
    from diffusers import AutoencoderKL

    config = _config("vae", _widths(weights, "encoder.down_blocks"), SD1_FILE)
    return filled(lambda: AutoencoderKL.from_config(config), weights)


def _text_encoder_of(weights: "dict[str, Tensor]", assumed: SingleFile, *, as_stored: bool) -> Any:
    from transformers import CLIPTextConfig

    width = weights["embeddings.token_embedding.weight"].shape[1]
    config = _config("text_encoder", width, assumed)
    if "num_hidden_layers" in assumed.changes.get("text_encoder", {}):  # files differ in it
        config["num_hidden_layers"] = sum(name.endswith(".layer_norm1.bias") for name in weights)
    return text_encoder_with(CLIPTextConfig(**config), weights, as_stored=as_stored)


def text_encoder_with(
    config: Any, weights: "Mapping[str, Tensor]", class_name: str = "CLIPTextModel", *, as_stored: bool = False
) -> Any:
    """Build a text encoder; the weights' names come without `text_model.` and position_ids."""
    import transformers

    kind = getattr(transformers, class_name)
    return filled(lambda: kind(config), weights, optional_prefix="text_model.", as_stored=as_stored)


def _widths(weights: "Mapping[str, Tensor]", blocks: str) -> list[int]:
    return [weights[f"{blocks}.{level}.resnets.0.conv1.weight"].shape[0] for level in range(4)]


def _config(part: str, width: int | list[int], assumed: SingleFile) -> dict[str, Any]:
    """Return the configuration that a single file does not give of a part: its family's, or the starter's."""
    key = "hidden_size" if part == "text_encoder" else "block_out_channels"
    changes = dict(assumed.changes.get(part, {}))
    starter: dict[str, Any] = json.loads((starter_folder() / part / "config.json").read_text("utf-8"))
    # A narrow model keeps its sizes and uses the other values.
    narrow = starter | {name: value for name, value in changes.items() if isinstance(value, bool | str)}
    full = SD15_CONFIGS[part] | changes
    for config in (full, narrow):
        if config[key] == width:
            return {name: value for name, value in config.items() if not name.startswith("_")}
    raise BaseModelError(
        f"The file's {part} is {width} wide.", f"That of {assumed.title} is {full[key]} wide.",
        "Choose an SD 1.x or 2.x file.",
    )  # fmt: skip


# What the tensors do not say ------------------------------------------------------------------------------------------


def _prediction_type(unet: Any, header: Mapping[str, str], assumed: SingleFile) -> str:
    """Return what the UNet predicts: according to the file, else as found by testing it if both are usual."""
    prediction_type = prediction_type_in(header)
    if prediction_type is not None or assumed.v_px is None:
        return prediction_type or "epsilon"
    import torch

    states = torch.zeros(1, 77, unet.config.cross_attention_dim)
    with in_fp32_by_layers(unet):
        asked = gives_noise_back(lambda noise, timestep: unet.eval()(noise, timestep, states).sample)
    return "epsilon" if asked else "v_prediction"


def prediction_type_in(header: Mapping[str, str]) -> str | None:
    """Return what a file's header says that its model predicts, None if it does not say."""
    names = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}
    return names.get(header.get("modelspec.prediction_type", ""))


def gives_noise_back(predict: "Callable[[Tensor, Tensor], Tensor]") -> bool:
    """Return whether a UNet, given almost pure noise, returns that noise; `predict` takes noise and a timestep.

    At the last timestep a model that predicts the noise must; one that predicts v (Salimans and Ho, arXiv 2202.00512,
    eq. 10: v = alpha eps - sigma x, alpha almost 0) returns minus the image, which is unrelated to the noise.
    """
    import torch

    noise = torch.randn(1, 4, 32, 32, generator=rng.generator(0, "generation"))
    with torch.no_grad():
        answer = predict(noise, torch.tensor([999]))
    return float(torch.corrcoef(torch.stack([noise.flatten(), answer.flatten()]))[0, 1]) > 0.5


@contextlib.contextmanager
def in_fp32_by_layers(model: Any) -> Iterator[None]:
    """Have a half-precision model compute in fp32, one layer at a time: CPUs are slow in half precision."""
    import torch

    def widened(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        layer.float()
        return tuple(one.float() if torch.is_tensor(one) and one.is_floating_point() else one for one in inputs)

    handles = []
    for layer in model.modules():
        own = next(layer.parameters(recurse=False), None)
        if own is not None and own.dtype != torch.float32:
            handles.append(layer.register_forward_pre_hook(widened))
            # What was converted from half precision converts back exactly.
            handles.append(layer.register_forward_hook(functools.partial(_narrowed, own.dtype)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _narrowed(dtype: "torch.dtype", layer: Any, inputs: Any, output: Any) -> None:
    layer.to(dtype)


def native_px_in(header: Mapping[str, str]) -> int | None:
    """Return the image size that a file's header says its model is for."""
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", header.get("modelspec.resolution", ""))
    side_px = min(int(match[1]), int(match[2])) if match else 0
    return side_px if 16 <= side_px <= 2048 and side_px % 8 == 0 else None


def _own_px(unet: Any) -> int:
    return 8 * int(unet.config.sample_size)
