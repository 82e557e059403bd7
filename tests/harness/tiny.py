"""A base with random weights in SD 1.5's topology, as narrow as it can be: 32 px, about 0.5 M parameters."""

from pathlib import Path

from dreambooth.models.base import Base
from dreambooth.models.card import BaseCard
from dreambooth.models.saving import write_model
from dreambooth.models.sd import SD15_SCHEDULER
from dreambooth.models.sdxl import StableDiffusionXL
from dreambooth.starter.tokens import write_tokenizer

TINY_PX = 32


def tiny_base(
    folder: Path, *, prediction_type: str = "epsilon", num_text_layers: int = 2, seed: int = 0, is_sd2: bool = False
) -> Path:
    """Write the base into `folder`, in fp32, and return it; `is_sd2` makes it of SD 2.x's kind."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vocabulary_size = write_tokenizer(folder / "tokenizer", ["photo", "of", "dog"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=TINY_PX // 8, block_out_channels=(8, 16, 24, 24), cross_attention_dim=16,
            attention_head_dim=2, norm_num_groups=4, use_linear_projection=is_sd2,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(4, 8, 12, 12), layers_per_block=2, norm_num_groups=4, sample_size=TINY_PX,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
        )  # fmt: skip
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary_size, hidden_size=16, intermediate_size=32, num_hidden_layers=num_text_layers,
                num_attention_heads=2, projection_dim=16, bos_token_id=vocabulary_size - 2,
                eos_token_id=vocabulary_size - 1, pad_token_id=vocabulary_size - 1,
                hidden_act="gelu" if is_sd2 else "quick_gelu",
            )
        )  # fmt: skip
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    scheduler = SD15_SCHEDULER | {"prediction_type": prediction_type}
    base = Base("tiny", unet, text_encoder, vae, tokenizer, scheduler, BaseCard(native_px=TINY_PX))
    write_model(folder, base, torch.float32)
    return folder


def tiny_sdxl_base(
    folder: Path, *, depths: tuple[int, ...] = (1, 1, 2), num_text_layers: tuple[int, int] = (2, 3), seed: int = 0,
    zeros_for_nothing: bool = True, prediction_type: str = "epsilon",
) -> Path:  # fmt: skip
    """Write a base of SDXL's kind into `folder`, in fp32, and return it: narrow, its text encoders of other widths.

    With depths of 1, 2, 10 and 12 and 32 text layers it has every name of SDXL's own.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    for name in ("tokenizer", "tokenizer_2"):
        vocabulary_size = write_tokenizer(folder / name, ["photo", "of", "dog"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=TINY_PX // 8, block_out_channels=(8, 16, 24), cross_attention_dim=16 + 24,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(1, 2, 3), transformer_layers_per_block=depths, norm_num_groups=4,
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(4, 8, 12, 12), layers_per_block=2, norm_num_groups=4, sample_size=TINY_PX,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
            scaling_factor=0.13025,
        )  # fmt: skip
        encoders = [
            kind(
                CLIPTextConfig(
                    vocab_size=vocabulary_size, hidden_size=width, intermediate_size=2 * width,
                    num_hidden_layers=num_layers, num_attention_heads=2, projection_dim=width,
                    bos_token_id=vocabulary_size - 2, eos_token_id=vocabulary_size - 1,
                    pad_token_id=vocabulary_size - 1, hidden_act=activation,
                )
            )
            for kind, width, num_layers, activation in (
                (CLIPTextModel, 16, num_text_layers[0], "quick_gelu"),
                (CLIPTextModelWithProjection, 24, num_text_layers[1], "gelu"),
            )
        ]  # fmt: skip
    tokenizers = [CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")]
    tokenizers[1].pad_token = "!"
    # It would bring the other token back.
    (folder / "tokenizer_2" / "special_tokens_map.json").unlink()
    scheduler = SD15_SCHEDULER | {"prediction_type": prediction_type}
    base = Base(
        "tiny", unet, encoders[0], vae, tokenizers[0], scheduler, BaseCard(native_px=TINY_PX),
        StableDiffusionXL(zeros_for_nothing=zeros_for_nothing), text_encoder_2=encoders[1], tokenizer_2=tokenizers[1],
    )  # fmt: skip
    write_model(folder, base, torch.float32)
    return folder
