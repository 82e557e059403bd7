"""Stable Diffusion 1.x and 2.x: how their parts work together, and what is assumed of a single file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dreambooth.formats.layout import SD1, FamilyName, Layout
from dreambooth.formats.ldm import from_ldm, modern_vae_key, to_ldm, without_text_model
from dreambooth.formats.original import original_names
from dreambooth.models.family import Condition, PictureSize, Posterior, TextInputs

if TYPE_CHECKING:
    from torch import Tensor

SD15_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
SD15_CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "vae": {
        "sample_size": 512,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    },
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 1,
    },
}
# The differences of SD 2.x, whose VAE is the same.
SD2_CHANGES: dict[str, dict[str, Any]] = {
    "unet": {
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "text_encoder": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
}


@dataclass(frozen=True)
class SingleFile:
    """What is assumed of the model in a single file of a family, because the file does not say it.

    changes: how the parts' configurations differ from SD 1.5's; pad_token: the tokenizer's, if it is not CLIP's; v_px:
    the image size of models that predict v, None if a file's model predicts the noise unless it says otherwise.
    """

    title: str
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pad_token: str | None = None
    v_px: int | None = None


SD1_FILE = SingleFile("SD 1.x")
SINGLE_FILES: dict[FamilyName, SingleFile] = {
    "sd1": SD1_FILE,
    "sd2": SingleFile("SD 2.x", SD2_CHANGES, pad_token="!", v_px=768),
}


@dataclass(frozen=True)
class StableDiffusion:
    """The family of SD 1.x and 2.x (Rombach et al. 2022, arXiv 2112.10752): one CLIP text encoder, its last states."""

    layout: Layout = SD1

    @property
    def index_options(self) -> Mapping[str, Any]:
        """Return that there is no safety checker: it would have to be downloaded."""
        return {"requires_safety_checker": False}

    def text_inputs(
        self, base: Any, captions: Sequence[str], *, length: int | None, left_out: Sequence[bool] | None = None
    ) -> TextInputs:
        """Return the captions as token ids, each padded or cut to `length`, by default the longest one's.

        No text at all is the empty text.
        """
        ids = base.tokenizer(
            list(captions),
            padding="longest" if length is None else "max_length",
            max_length=base.tokenizer.model_max_length if length is None else length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return TextInputs(ids)

    def encode_text(self, base: Any, inputs: TextInputs) -> Condition:
        """Return the text encoder's last hidden states, (batch, length, width)."""
        return Condition(base.text_encoder(inputs.ids)[0])

    def single_file_names(self, configs: Mapping[str, Mapping[str, Any]], scheduler: Mapping[str, Any]) -> set[str]:
        """Return every name of a file in the original layout."""
        return original_names(
            configs["unet"]["block_out_channels"], configs["vae"]["block_out_channels"],
            int(configs["text_encoder"]["num_hidden_layers"]), open_clip=self.layout.open_clip,
        )  # fmt: skip

    def to_single_file(
        self, parts: "Mapping[str, Mapping[str, Tensor]]", scheduler: Mapping[str, Any]
    ) -> "dict[str, Tensor]":
        """Return the parts' weights under the original names."""
        return to_ldm(parts["unet"], parts["vae"], parts["text_encoder"], open_clip=self.layout.open_clip)

    def from_single_file(self, weights: "Mapping[str, Tensor]") -> "dict[str, dict[str, Tensor]]":
        """Return the parts' weights under diffusers' names."""
        unet, vae, text_encoder = from_ldm(weights)
        return {"unet": unet, "vae": vae, "text_encoder": text_encoder}

    def named_as_read(self, parts: "Mapping[str, Mapping[str, Tensor]]") -> "dict[str, Mapping[str, Tensor]]":
        """Return the weights of a folder's parts under the names that `from_single_file` gives them."""
        vae = {modern_vae_key(name): tensor for name, tensor in parts["vae"].items()}
        return {**parts, "vae": vae, "text_encoder": without_text_model(parts["text_encoder"])}

    def size_ids(self, sizes: Sequence[PictureSize]) -> "Tensor | None":
        """Return None: these UNets are not conditioned on sizes."""
        return None

    def predict(self, unet: Any, noisy: "Tensor", timesteps: "Tensor", condition: Condition) -> "Tensor":
        """Return the UNet's prediction for noisy latents (batch, channels, height / 8, width / 8)."""
        noisy, states = (tensor.to(next(unet.parameters()).dtype) for tensor in (noisy, condition.states))
        prediction: Tensor = unet(noisy, timesteps, states).sample
        return prediction

    def encode(self, vae: Any, pixels: "Tensor") -> Posterior:
        """Return the posterior of images (batch, 3, height, width) in -1..1, without a graph."""
        import torch

        with torch.no_grad():
            found = vae.encode(pixels.to(next(vae.parameters()))).latent_dist
        return Posterior(found.mean.float(), found.std.float())

    def decode(self, vae: Any, latents: "Tensor") -> "Tensor":
        """Return the images of scaled latents as (batch, 3, height, width) fp32, about -1..1."""
        pictures: Tensor = vae.decode((latents / vae.config.scaling_factor).to(next(vae.parameters()))).sample
        return pictures.float()
