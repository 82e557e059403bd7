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
from dreambooth.export.single_file import PARTS, OriginalModel, Precision, Written, convert
from dreambooth.formats.ldm import from_ldm, modern_vae_key, without_text_model
from dreambooth.formats.safetensors_file import Cast, same_bits, stored_dtype
from dreambooth.models.base import load_tokenizer, quiet_libraries
from dreambooth.models.strength import WHOLE, Strength, folder_at_strength
from dreambooth.models.weights import read_weights
from dreambooth.workspace import sync

if TYPE_CHECKING:
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
        # Loading the libraries and building the models takes as long as writing the file.
        models = beside.submit(empty_models, model_dir)

        def check(written: Written) -> None:
            verdicts.append(verify(written, models.result()))

        path = convert(
            model_dir, out_path, precision=precision, use_safetensors=use_safetensors, on_progress=on_progress,
            check=check,
        )  # fmt: skip
    (verdict,) = verdicts
    return dataclasses.replace(verdict, path=path)


def verify(written: Written, models: "Models | None") -> Verdict:
    """Hold a written file to its folder, and have `models` make a picture from both, if they can.

    Raises ExportError naming what differs. Costs no copy of the model.
    """
    model, path = written.model, written.path
    weights = read_weights(path, is_safetensors=written.is_safetensors)
    strange = sorted(weights.keys() ^ model.expected_names)
    if strange:
        raise _differs(path, f"Missing or not the original's: {', '.join(strange[:3])}.")
    kinds = {name: (stored_dtype(one, written.float_dtype), one.shape) for name, one in model.weights.items()}
    misshapen = [name for name, one in weights.items() if (one.dtype, one.shape) != kinds[name]]
    if misshapen:
        raise _differs(path, f"{misshapen[0]} is not the folder's.")
    same = OnceCompared()
    with ThreadPoolExecutor(2) as beside:
        on_disk = beside.submit(sync, path)
        compared = beside.submit(_first_difference, written, weights, same)
        other = None if models is None else _other_in_picture(models, from_ldm(weights), _parts_of(model), same)
        different = compared.result()
        on_disk.result()
    if different:
        raise _differs(path, f"{different[0]} is not the folder's.")
    if other is not None:
        raise _differs(path, f"A picture made from it is not the one made from the folder: {other} differs.")
    num_bytes = sum(tensor.nbytes for tensor in weights.values())
    without = "no picture was made: the folder has no tokenizer" if models is None else ""
    return Verdict(path, len(weights), num_bytes, without)


class OnceCompared:
    """Holds tensors of a file to their folder's, in the file's number format, and each pair of them once.

    The picture and the list of all tensors come by the same pairs. A pair is known by its places in memory.
    """

    def __init__(self) -> None:
        self._verdicts: dict[tuple[int, int, int], bool] = {}

    def __call__(self, of_folder: "Tensor", of_file: "Tensor", cast: Cast) -> bool:
        """Return whether the folder's tensor, cast to the file's number format, has the bits of the file's."""
        pair = (of_folder.data_ptr(), of_file.data_ptr(), of_file.nbytes)
        if pair not in self._verdicts:
            self._verdicts[pair] = same_bits(cast(of_folder, of_file.dtype), of_file)
        return self._verdicts[pair]


def _first_difference(written: Written, weights: "dict[str, Tensor]", same: OnceCompared) -> list[str]:
    """Return the name of a tensor whose bits are not those of the folder's in the file's format, if there is one."""
    cast, folder = Cast(), written.model.weights
    # The picture begins with the text encoder, as files do: coming from the other end, the two meet in the UNet.
    differing = (name for name in reversed(weights) if not same(folder[name], weights[name], cast))
    return list(itertools.islice(differing, 1))


def _differs(path: Path, why: str) -> ExportError:
    return ExportError(
        "The written file is not the model.",
        why,
        "It is a defect of the disk or of ours: try another place, or tell us.",
    )


# The picture ---------------------------------------------------------------------------------------------------------

Parts = tuple["dict[str, Tensor]", "dict[str, Tensor]", "dict[str, Tensor]"]
Models = tuple[Any, Any, Any, "Tensor"]


def empty_models(folder: Path) -> Models | None:
    """Return the folder's UNet, VAE and text encoder without weights, and a prompt's tokens; None without a tokenizer.

    Raises the libraries' own errors for a folder that is no model.
    """
    if not (folder / "tokenizer").is_dir():
        return None
    quiet_libraries()
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with init_empty_weights(include_buffers=False):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    token_ids = load_tokenizer(str(folder / "tokenizer"), None)(PROMPT, return_tensors="pt").input_ids
    return unet.eval(), vae.eval(), text_encoder.eval(), token_ids


def _parts_of(model: OriginalModel) -> Parts:
    unet, vae, text_encoder = (model.parts[part] for part in PARTS)
    return unet, {modern_vae_key(name): tensor for name, tensor in vae.items()}, without_text_model(text_encoder)


def _other_in_picture(models: Models, file_parts: Parts, folder_parts: Parts, same: OnceCompared) -> str | None:
    """Make a small picture of a file's weights and one of its folder's; return the first weight that sets them apart.

    The folder's is made along with the file's: a layer that gets the same numbers and has the same weights to the bit
    gives the same, which is taken over. Both are (1, 3, 32, 32), in fp32, from noise by one unguided step: as small as
    can be, and still through every layer that a picture needs. Reading the weights is what it costs.
    """
    import torch

    unet, vae, text_encoder, token_ids = models
    others: list[str] = []
    for module, of_file, of_folder in zip((unet, vae, text_encoder), file_parts, folder_parts, strict=True):
        _take_up(module, of_file, of_folder, same, others)
    noise = torch.randn((1, unet.config.in_channels, *LATENT_SIZE), generator=rng.generator(0, "generation"))
    with torch.no_grad():
        states = text_encoder(token_ids)[0]
        prediction = unet(noise, TIMESTEP, encoder_hidden_states=states).sample
        vae.decode(noise - prediction)
    return next(iter(others), None)


def _take_up(
    module: Any,
    of_file: "Mapping[str, Tensor]",
    of_folder: "Mapping[str, Tensor]",
    same: OnceCompared,
    others: list[str],
) -> None:
    """Have a module compute with the file's weights in fp32, of which it holds one layer's at a time.

    As it comes to a layer whose weights are not the folder's in the file's number format, their names go to `others`.
    At rest the module holds one zero in every place, so that it looks like any model in fp32 and takes no memory.
    """
    import torch

    # Some versions of transformers have the text encoder's layers under this name.
    prefix = "text_model." if hasattr(module, "text_model") else ""
    zeros = {prefix + name: torch.zeros(()).expand(tensor.shape) for name, tensor in of_file.items()}
    module.load_state_dict(zeros, assign=True)
    memory: dict[str, tuple[Cast, Cast]] = {}
    for layer_name, layer in module.named_modules():
        if at_rest := dict(layer.named_parameters(recurse=False)):
            names = {name: f"{layer_name}.{name}".lstrip(".").removeprefix(prefix) for name in at_rest}
            pairs = {name: (of_file[full], of_folder[full]) for name, full in names.items()}
            # Layers without others inside come one after the other: they share their memory.
            shared = {} if any(layer.children()) else memory
            layer.register_forward_pre_hook(functools.partial(_fill, layer_name, pairs, shared, same, others))
            layer.register_forward_hook(functools.partial(_empty, at_rest))


def _fill(
    layer_name: str,
    pairs: "Mapping[str, tuple[Tensor, Tensor]]",
    memory: dict[str, tuple[Cast, Cast]],
    same: OnceCompared,
    others: list[str],
    layer: Any,
    inputs: object,
) -> None:
    import torch

    for name, (of_file, of_folder) in pairs.items():
        rounding, widening = memory.setdefault(name, (Cast(), Cast()))
        if not same(of_folder, of_file, rounding):
            others.append(f"{layer_name}.{name}")
        setattr(layer, name, torch.nn.Parameter(widening(of_file, torch.float32), requires_grad=False))


def _empty(at_rest: Mapping[str, Any], layer: Any, inputs: object, output: object) -> None:
    for name, parameter in at_rest.items():
        setattr(layer, name, parameter)
