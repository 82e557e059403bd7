"""Bases with random weights in SD 1.5's topology, for measuring: `full` has its own sizes, `mini` and `narrow` less.

    python -m benchmarks.bases FOLDER [--size narrow|mini|full]

Time and memory do not depend on what the weights are; no download is needed.
"""

import argparse
from pathlib import Path
from typing import Any, Literal

from dreambooth.models.base import Base, quiet_libraries
from dreambooth.models.card import BaseCard
from dreambooth.models.saving import write_model
from dreambooth.models.sd import SD15_CONFIGS, SD15_SCHEDULER
from dreambooth.starter.tokens import write_tokenizer

Size = Literal["narrow", "mini", "full"]
WORDS = ("photo", "of", "dog")

# What differs from SD 1.5, part by part.
CHANGES: dict[Size, dict[str, dict[str, Any]]] = {
    "narrow": {
        "unet": {
            "sample_size": 8, "block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 32,
            "attention_head_dim": 4,
        },
        "vae": {"sample_size": 64, "block_out_channels": [32, 32, 32, 32]},
        "text_encoder": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "projection_dim": 32,
        },
    },
    "mini": {
        "unet": {"sample_size": 16, "block_out_channels": [64, 128, 256, 256], "cross_attention_dim": 128},
        "vae": {"sample_size": 128, "block_out_channels": [32, 64, 96, 96]},
        "text_encoder": {
            "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
            "projection_dim": 128,
        },
    },
    "full": {},
}  # fmt: skip


def main() -> None:
    """Write the base that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=list(CHANGES), default="mini")
    arguments = parser.parse_args()
    print(random_base(arguments.folder, arguments.size))


def native_px(size: Size) -> int:
    """Return the side of the pictures that a base of this size is for."""
    unet: dict[str, Any] = {**SD15_CONFIGS["unet"], **CHANGES[size].get("unet", {})}
    return 8 * int(unet["sample_size"])


def configurations(size: Size, vocabulary_size: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return what UNet, VAE and text encoder are made from."""
    unet, vae, text_encoder = (
        {**SD15_CONFIGS[part], **CHANGES[size].get(part, {})} for part in ("unet", "vae", "text_encoder")
    )
    text_encoder["eos_token_id"] = text_encoder["pad_token_id"] = vocabulary_size - 1
    text_encoder["bos_token_id"] = vocabulary_size - 2
    if size != "full":
        text_encoder["vocab_size"] = vocabulary_size
    return unet, vae, text_encoder


def random_base(folder: Path, size: Size, seed: int = 0, device: str = "cpu") -> Path:
    """Write the base into `folder` in fp32, unless it is there, and return it; weights are drawn on `device`."""
    if (folder / "model_index.json").exists():
        return folder
    quiet_libraries()
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    unet, vae, text_encoder = configurations(size, write_tokenizer(folder / "tokenizer", WORDS))
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        models = {
            "unet": UNet2DConditionModel(**unet),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text_encoder)),
            "vae": AutoencoderKL(**vae),
        }
    tokenizer, card = CLIPTokenizer.from_pretrained(folder / "tokenizer"), BaseCard(native_px=native_px(size))
    base = Base(size, **models, tokenizer=tokenizer, noise_scheduler_config=SD15_SCHEDULER, card=card)
    write_model(folder, base, torch.float32)
    return folder


if __name__ == "__main__":
    main()
