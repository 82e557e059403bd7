"""A single file in the original layout as the parts of a base, whatever its family."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth.errors import BaseModelError
from dreambooth.formats.layout import LAYOUTS, family_of_names
from dreambooth.formats.ldm import VAE_PREFIX, vae_from_original
from dreambooth.formats.other_kinds import refuse_other_kinds
from dreambooth.models.family import FileParts, file_reader
from dreambooth.models.sd_file import vae_of
from dreambooth.models.weights import file_metadata, read_weights


def parts_of_file(path: Path, *, as_stored: bool = False) -> FileParts:
    """Read a file's parts; raises BaseModelError saying what the file is instead, or what it lacks.

    as_stored: trainable parts keep the number format of the file instead of fp32.
    """
    weights = read_weights(path)
    refuse_other_kinds(path.name, {name: tensor.shape for name, tensor in weights.items()})
    layout = LAYOUTS[family_of_names(weights)]
    try:
        return file_reader(layout)(weights, file_metadata(path), layout, as_stored)
    except (KeyError, IndexError, RuntimeError) as error:
        raise BaseModelError(
            f"{path.name} is not a complete Stable Diffusion model.",
            _wrong_tensors(error),
            "Choose a file that has UNet, VAE and text encoder.",
        ) from None


def vae_of_file(path: Path, usual: Mapping[str, Any]) -> Any:
    """Load the VAE of a file in the original layout: a whole model's, or a VAE alone without the prefix.

    usual: the configuration of the base's family, because a file does not say how its latents are scaled.
    """
    weights = read_weights(path)
    if not any(name.startswith(VAE_PREFIX) for name in weights):
        weights = {VAE_PREFIX + name: tensor for name, tensor in weights.items()}
    try:
        vae = vae_of(vae_from_original(weights))
    except (KeyError, IndexError, RuntimeError) as error:
        raise BaseModelError(
            f"{path.name} holds no VAE of Stable Diffusion.", _wrong_tensors(error),
            "Choose another, or leave pretrained_vae_name_or_path out.",
        ) from None  # fmt: skip
    if list(vae.config.block_out_channels) == list(usual["block_out_channels"]):
        vae.register_to_config(scaling_factor=usual["scaling_factor"])
    return vae


def _wrong_tensors(error: Exception) -> str:
    """Return which tensors are wrong: in the words of `filled`, else the name that could not be mapped."""
    text = str(error.args[0] if error.args else error)[:500]
    return f"{text}." if ": " in text else f"Missing or unknown: {text}."
