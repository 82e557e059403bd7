"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952): two text encoders, and a UNet with size conditioning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth.device.precision import without_autocast
from dreambooth.formats import sdxl_keys
from dreambooth.formats.layout import SDXL, Layout
from dreambooth.formats.ldm import modern_vae_key
from dreambooth.formats.original import sdxl_names
from dreambooth.models.family import Condition, PictureSize, Posterior, TextInputs
from dreambooth.models.sd import SD15_CONFIGS

if TYPE_CHECKING:
    from torch import Tensor

ZEROS = "force_zeros_for_empty_prompt"
# The same in the header of our single files.
ZEROS_IN_HEADER = f"dreambooth.{ZEROS}"
# SDXL 1.0's own sizes, before it is downloaded; what is not named is as in SD 1.5.
SDXL_CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": SD15_CONFIGS["vae"] | {"sample_size": 1024, "scaling_factor": 0.13025},
    "text_encoder": SD15_CONFIGS["text_encoder"],
    "text_encoder_2": SD15_CONFIGS["text_encoder"]
    | {
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
}


@dataclass(frozen=True)
class StableDiffusionXL:
    """The family of SDXL 1.0 and models derived from it.

    zeros_for_nothing: whether no text at all is encoded as zeros, as in the base's training; else as the empty text.
    """

    layout: Layout = SDXL
    zeros_for_nothing: bool = True

    @property
    def index_options(self) -> Mapping[str, Any]:
        """Return whether no text is encoded as zeros, in which derived models differ."""
        return {ZEROS: self.zeros_for_nothing}

    def text_inputs(
        self, base: Any, captions: Sequence[str], *, length: int | None, left_out: Sequence[bool] | None = None
    ) -> TextInputs:
        """Return the captions as token ids, padded to the tokenizers' own length, 77: padding is not masked in SDXL.

        The tokenizers pad with different tokens, so each encoder has its own ids.
        """
        import torch

        def ids_of(tokenizer: Any) -> "Tensor":
            ids: Tensor = tokenizer(
                list(captions), padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
                return_tensors="pt",
            ).input_ids  # fmt: skip
            return ids

        nothing = [not caption for caption in captions] if left_out is None else list(left_out)
        return TextInputs(
            ids_of(base.tokenizer), ids_2=ids_of(base.tokenizer_2),
            is_left_out=torch.tensor(nothing) if self.zeros_for_nothing else None,
        )  # fmt: skip

    def encode_text(self, base: Any, inputs: TextInputs) -> Condition:
        """Return both encoders' penultimate hidden states, without the final norm, concatenated, (batch, 77, width).

        The pooled vector is the second encoder's projection of its end token, (batch, width).
        """
        import torch

        first, _ = _before_last_layer(base.text_encoder, inputs.ids)
        second, output = _before_last_layer(base.text_encoder_2, inputs.ids_2)
        states, pooled = torch.cat([first, second], dim=-1), output.text_embeds
        if inputs.is_left_out is not None:
            states = states.masked_fill(inputs.is_left_out[:, None, None], 0.0)
            pooled = pooled.masked_fill(inputs.is_left_out[:, None], 0.0)
        return Condition(states, pooled, inputs.size_ids)

    def single_file_names(self, configs: Mapping[str, Mapping[str, Any]], scheduler: Mapping[str, Any]) -> set[str]:
        """Return every name of a file in the original layout, including the markers of v-prediction."""
        unet, encoders = configs["unet"], (configs["text_encoder"], configs["text_encoder_2"])
        widths, depths = unet["block_out_channels"], unet["transformer_layers_per_block"]
        depths = [depths] * len(widths) if isinstance(depths, int) else depths
        kinds = unet["down_block_types"]
        attended = [depth if "CrossAttn" in kind else 0 for depth, kind in zip(depths, kinds, strict=True)]
        first, second = (int(encoder["num_hidden_layers"]) for encoder in encoders)
        names = sdxl_names(widths, attended, configs["vae"]["block_out_channels"], (first, second))
        return names | set(_markers(scheduler))

    def to_single_file(
        self, parts: "Mapping[str, Mapping[str, Tensor]]", scheduler: Mapping[str, Any]
    ) -> "dict[str, Tensor]":
        """Return the parts' weights under the original names, and the markers of v-prediction."""
        import torch

        return sdxl_keys.to_original(parts) | {name: torch.zeros(0) for name in _markers(scheduler)}

    def from_single_file(self, weights: "Mapping[str, Tensor]") -> "dict[str, dict[str, Tensor]]":
        """Return the parts' weights under diffusers' names."""
        return sdxl_keys.from_original(weights)

    def named_as_read(self, parts: "Mapping[str, Mapping[str, Tensor]]") -> "dict[str, Mapping[str, Tensor]]":
        """Return the weights of a folder's parts under the names that `from_single_file` gives them."""
        texts = {name: sdxl_keys.without_prefix(parts[name]) for name in self.layout.text_encoders}
        return {**parts, "vae": {modern_vae_key(name): one for name, one in parts["vae"].items()}, **texts}

    def size_ids(self, sizes: Sequence[PictureSize]) -> "Tensor":
        """Return original height and width, top and left of the crop, target height and width, (batch, 6) fp32.

        They stay fp32 until the UNet computes their sinusoidal embedding: bf16 would round 683 to 684.
        """
        import torch

        return torch.tensor([[*size.original, *size.offset, *size.target] for size in sizes], dtype=torch.float32)

    def predict(self, unet: Any, noisy: "Tensor", timesteps: "Tensor", condition: Condition) -> "Tensor":
        """Return the UNet's prediction for noisy latents (batch, channels, height / 8, width / 8)."""
        assert condition.pooled is not None, "its text encoders make one"
        dtype = next(unet.parameters()).dtype
        added = {"text_embeds": condition.pooled.to(dtype), "time_ids": condition.size_ids}
        prediction: Tensor = unet(
            noisy.to(dtype), timesteps, condition.states.to(dtype), added_cond_kwargs=added
        ).sample
        return prediction

    def encode(self, vae: Any, pixels: "Tensor") -> Posterior:
        """Return the posterior of images (batch, 3, height, width) in -1..1, without a graph.

        In the VAE's own format, whatever the step's: its numbers overflow fp16.
        """
        import torch

        with torch.no_grad(), without_autocast(pixels.device.type):
            found = vae.encode(pixels.to(next(vae.parameters()))).latent_dist
        return Posterior(found.mean.float(), found.std.float())

    def decode(self, vae: Any, latents: "Tensor") -> "Tensor":
        """Return the images of scaled latents as (batch, 3, height, width) fp32, about -1..1."""
        with without_autocast(latents.device.type):
            scaled = (latents.float() / vae.config.scaling_factor).to(next(vae.parameters()))
            pictures: Tensor = vae.decode(scaled).sample
        return pictures.float()


def _before_last_layer(text_encoder: Any, ids: "Tensor | None") -> "tuple[Tensor, Any]":
    """Return the input states of a text encoder's last layer, and its output.

    transformers returns all states, but records none if the class was renamed, as `fully_shard` does.
    """
    found: list[Tensor] = []
    last = getattr(text_encoder, "text_model", text_encoder).encoder.layers[-1]
    handle = last.register_forward_pre_hook(lambda layer, arguments: found.append(arguments[0]))
    try:
        output = text_encoder(ids)
    finally:
        handle.remove()
    return found[0], output


def _markers(scheduler: Mapping[str, Any]) -> list[str]:
    """Return the names of the empty tensors that mark v-prediction and zero-terminal SNR in a file."""
    if scheduler.get("prediction_type") != "v_prediction":
        return []
    is_to_the_end = scheduler.get("rescale_betas_zero_snr") is True
    return [sdxl_keys.V_MARKER, *[sdxl_keys.ZERO_TERMINAL_MARKER] * is_to_the_end]
