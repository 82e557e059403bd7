"""A base with random weights in SD 1.5's topology, for measuring what does not depend on what the weights say."""

from pathlib import Path
from typing import Any

from dreambooth.models.base import BaseCard, quiet_libraries, write_model
from dreambooth.models.sd15 import SD15_CONFIGS, SD15_SCHEDULER
from dreambooth.starter.tokens import write_tokenizer

WORDS = ("photo", "of", "zwx", "dog")
NARROW: dict[str, dict[str, Any]] = {
    "unet": {"sample_size": 8, "block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 32,
             "attention_head_dim": 4},
    "vae": SD15_CONFIGS["vae"] | {"sample_size": 64, "block_out_channels": [32, 32, 32, 32]},
    "text_encoder": SD15_CONFIGS["text_encoder"] | {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "projection_dim": 32, "vocab_size": 1000, "bos_token_id": 998, "eos_token_id": 999,
    },
}  # fmt: skip
CONFIGS = {"full": SD15_CONFIGS, "narrow": NARROW}


def write_random_base(folder: Path, size: str, device: str) -> Path:
    """Write a base of this size (full or narrow) in fp32 and return the folder; weights come from seed 0."""
    quiet_libraries()
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    configs = CONFIGS[size]
    write_tokenizer(folder / "tokenizer", WORDS)
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices), torch.device(device):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**configs["unet"])
        vae = AutoencoderKL(**configs["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
    write_model(
        folder,
        unet=unet,
        text_encoder=text_encoder,
        vae=vae,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler_config=SD15_SCHEDULER,
        dtype=torch.float32,
        card=BaseCard(native_px=8 * configs["unet"]["sample_size"]),
    )
    return folder


def write_pictures(folder: Path, num_pictures: int, side_px: int) -> Path:
    """Write that many different square pictures of colored gradients into the folder."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_pictures):
        ramp = Image.linear_gradient("L").resize((side_px, side_px)).rotate(90 * (number % 4))
        channels = [ramp, ramp.rotate(180), Image.new("L", ramp.size, 40 * number % 256)]
        Image.merge("RGB", channels).save(folder / f"{number}.png")
    return folder
