"""Bases with random weights in SD 1.5's topology, for measuring: `mini` is narrow, `full` has SD 1.5's own sizes.

    python -m benchmarks.bases FOLDER [--size mini|full]

Time and memory do not depend on what the weights are; no download is needed.
"""

import argparse
from pathlib import Path
from typing import Any, Literal

from dreambooth.models.base import BaseCard, write_model
from dreambooth.models.sd15 import SD15_CONFIGS, SD15_SCHEDULER
from dreambooth.starter.tokens import write_tokenizer

Size = Literal["mini", "full"]

MINI: dict[str, dict[str, Any]] = {
    "unet": {"sample_size": 16, "block_out_channels": [64, 128, 256, 256], "cross_attention_dim": 128},
    "vae": {"sample_size": 128, "block_out_channels": [32, 64, 96, 96]},
    "text_encoder": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "projection_dim": 128,
    },
}


def main() -> None:
    """Write the base that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=("mini", "full"), default="mini")
    arguments = parser.parse_args()
    print(random_base(arguments.folder, arguments.size))


def random_base(folder: Path, size: Size, seed: int = 0) -> Path:
    """Write the base into `folder` in fp32, unless it is there, and return the folder."""
    if (folder / "model_index.json").exists():
        return folder
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vocabulary_size = write_tokenizer(folder / "tokenizer", ["photo", "of", "dog"])
    changes = MINI if size == "mini" else {}
    unet, vae, text_encoder = (
        {**SD15_CONFIGS[part], **changes.get(part, {})} for part in ("unet", "vae", "text_encoder")
    )
    text_encoder["eos_token_id"] = text_encoder["pad_token_id"] = vocabulary_size - 1
    text_encoder["bos_token_id"] = vocabulary_size - 2
    if size == "mini":
        text_encoder["vocab_size"] = vocabulary_size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        write_model(
            folder,
            unet=UNet2DConditionModel(**unet),
            text_encoder=CLIPTextModel(CLIPTextConfig(**text_encoder)),
            vae=AutoencoderKL(**vae),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            scheduler_config=SD15_SCHEDULER,
            dtype=torch.float32,
            card=BaseCard(native_px=unet["sample_size"] * 8),
        )
    return folder


if __name__ == "__main__":
    main()
