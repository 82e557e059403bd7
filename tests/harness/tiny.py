"""A base with random weights in SD 1.5's topology, as narrow as it can be: 32 px, about 0.5 M parameters."""

from pathlib import Path

from dreambooth.models.base import Base
from dreambooth.models.card import BaseCard
from dreambooth.models.saving import write_model
from dreambooth.models.sd import SD15_SCHEDULER
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
