"""Bases with random weights in the topology of SD 1.5 and SDXL, for measuring and for tests.

    python -m benchmarks.bases FOLDER [--size narrow|mini|full|tiny|sdxl_tiny|sdxl_narrow|sdxl_full] [--precision fp16]

`full` and `sdxl_full` have their own sizes. `sdxl_narrow` has SDXL's depths and so every name of its tensors, in 25 M
weights; the tiny ones are for steps that take a moment. Time and memory do not depend on what the weights are; no
download is needed.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dreambooth.models.base import Base, quiet_libraries
from dreambooth.models.card import BaseCard
from dreambooth.models.saving import write_model
from dreambooth.models.sd import SD15_CONFIGS, SD15_SCHEDULER, StableDiffusion
from dreambooth.models.sdxl import SDXL_CONFIGS, StableDiffusionXL
from dreambooth.starter.tokens import write_tokenizer

if TYPE_CHECKING:
    import torch

Size = Literal["narrow", "mini", "full", "tiny", "sdxl_tiny", "sdxl_narrow", "sdxl_full"]
Changes = Mapping[str, Mapping[str, Any]]
WORDS = ("photo", "of", "dog")
TINY_VAE = {"sample_size": 32, "block_out_channels": [4, 8, 12, 12], "norm_num_groups": 4}


def _text(width: int, num_layers: int, num_heads: int = 2) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads, "projection_dim": width,
    }  # fmt: skip


def _sdxl_unet(widths: list[int], heads: list[int], depths: list[int], text_widths: tuple[int, int]) -> dict[str, Any]:
    return {
        "block_out_channels": widths, "attention_head_dim": heads, "transformer_layers_per_block": depths,
        "cross_attention_dim": sum(text_widths), "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": text_widths[1] + 6 * 8,
    }  # fmt: skip


# What differs from the family's own sizes, part by part.
CHANGES: dict[Size, dict[str, dict[str, Any]]] = {
    "narrow": {
        "unet": {
            "sample_size": 8, "block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 32,
            "attention_head_dim": 4,
        },
        "vae": {"sample_size": 64, "block_out_channels": [32, 32, 32, 32]},
        "text_encoder": _text(32, 2),
    },
    "mini": {
        "unet": {"sample_size": 16, "block_out_channels": [64, 128, 256, 256], "cross_attention_dim": 128},
        "vae": {"sample_size": 128, "block_out_channels": [32, 64, 96, 96]},
        "text_encoder": _text(128, 3, 4) | {"intermediate_size": 512},
    },
    "full": {},
    "tiny": {
        "unet": {
            "sample_size": 4, "block_out_channels": [8, 16, 24, 24], "cross_attention_dim": 16,
            "attention_head_dim": 2, "norm_num_groups": 4,
        },
        "vae": TINY_VAE,
        "text_encoder": _text(16, 2),
    },
    # Text encoders of different widths: one taken for the other fails by its shapes.
    "sdxl_tiny": {
        "unet": {"sample_size": 4, "norm_num_groups": 4} | _sdxl_unet([8, 16, 24], [1, 2, 3], [1, 1, 2], (16, 24)),
        "vae": TINY_VAE,
        "text_encoder": _text(16, 2),
        "text_encoder_2": _text(24, 3),
    },
    "sdxl_narrow": {
        "unet": {"sample_size": 8, "norm_num_groups": 8} | _sdxl_unet([32, 64, 128], [1, 2, 4], [1, 2, 10], (32, 48)),
        "vae": {"sample_size": 64, "block_out_channels": [16, 32, 64, 64], "norm_num_groups": 8},
        "text_encoder": _text(32, 12),
        "text_encoder_2": _text(48, 32),
    },
    "sdxl_full": {},
}  # fmt: skip


def main() -> None:
    """Write the base that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=list(CHANGES), default="mini")
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], default="fp32")
    arguments = parser.parse_args()
    print(random_base(arguments.folder, arguments.size, precision=arguments.precision))


def is_sdxl(size: Size) -> bool:
    """Return whether a base of this size is SDXL's kind."""
    return size.startswith("sdxl")


def native_px(size: Size) -> int:
    """Return the side of the pictures that a base of this size is for."""
    own = SDXL_CONFIGS if is_sdxl(size) else SD15_CONFIGS
    return 8 * int((own["unet"] | CHANGES[size].get("unet", {}))["sample_size"])


def configurations(size: Size, vocabulary_size: int, changes: Changes | None = None) -> dict[str, dict[str, Any]]:
    """Return what each part is made from, by name; `changes` are further ones."""
    found = {}
    for part, config in (SDXL_CONFIGS if is_sdxl(size) else SD15_CONFIGS).items():
        found[part] = config | CHANGES[size].get(part, {}) | dict((changes or {}).get(part, {}))
        if part.startswith("text_encoder"):
            tokens = {"bos_token_id": vocabulary_size - 2, "eos_token_id": vocabulary_size - 1}
            found[part] |= tokens | {"pad_token_id": vocabulary_size - 1}
            found[part] |= {"vocab_size": vocabulary_size} if CHANGES[size] else {}
    return found


def random_base(
    folder: Path,
    size: Size,
    seed: int = 0,
    device: str = "cpu",
    *,
    precision: str = "fp32",
    changes: Changes | None = None,
    scheduler: Mapping[str, Any] | None = None,
    family: StableDiffusion | StableDiffusionXL | None = None,
    tiled: bool = False,
) -> Path:
    """Write the base into `folder`, unless it is there, and return it; weights are drawn on `device`.

    `changes` are those to the parts' configurations and `scheduler` those to the noise schedule; `family` differs from
    the size's own in its options. `tiled` weights repeat a million numbers: to draw billions takes a CPU minutes.
    """
    if (folder / "model_index.json").exists():
        return folder
    quiet_libraries()
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    family = family or (StableDiffusionXL() if is_sdxl(size) else StableDiffusion())
    # A text encoder of its own size knows as many tokens as CLIP's.
    num_tokens = 0 if CHANGES[size] else int(SD15_CONFIGS["text_encoder"]["vocab_size"])
    vocabulary_sizes = [write_tokenizer(folder / name, WORDS, num_tokens) for name in family.layout.tokenizers]
    draw = _tiled if tiled else _drawn
    models = draw(configurations(size, vocabulary_sizes[0], changes), seed, device, dtype)
    base = Base(
        size, **models, **_tokenizers(folder, family.layout.tokenizers),
        noise_scheduler_config=SD15_SCHEDULER | dict(scheduler or {}), card=BaseCard(native_px=native_px(size)),
        family=family,
    )  # fmt: skip
    write_model(folder, base, dtype)
    return folder


def _drawn(
    configs: Mapping[str, Mapping[str, Any]], seed: int, device: str, dtype: "torch.dtype"
) -> dict[str, "torch.nn.Module"]:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    makers: dict[str, Any] = {
        "unet": lambda config: UNet2DConditionModel(**config),
        "vae": lambda config: AutoencoderKL(**config),
        "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
        "text_encoder_2": lambda config: CLIPTextModelWithProjection(CLIPTextConfig(**config)),
    }
    before = torch.get_default_dtype()
    # Drawn in their own format: SDXL would be 14 GB in fp32.
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            return {part: make(configs[part]) for part, make in makers.items() if part in configs}
    finally:
        torch.set_default_dtype(before)


def _tiled(
    configs: Mapping[str, Mapping[str, Any]], seed: int, device: str, dtype: "torch.dtype"
) -> dict[str, "torch.nn.Module"]:
    import torch

    models = {part: model.to_empty(device=device) for part, model in _drawn(configs, seed, "meta", dtype).items()}
    numbers = (0.02 * torch.randn(2**20, generator=torch.Generator().manual_seed(seed))).to(device, dtype)
    for name, tensor in (named for model in models.values() for named in model.state_dict().items()):
        flat = tensor.view(-1)
        for start in range(0, len(flat), len(numbers)):
            piece = flat[start : start + len(numbers)]
            piece.copy_(numbers[: len(piece)])
        if tensor.dim() == 1 and name.endswith("weight"):  # a norm's
            flat += 1
    return models


def _tokenizers(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the tokenizers by name; the second one pads with another token, as SDXL's does."""
    from transformers import CLIPTokenizer

    found = {name: CLIPTokenizer.from_pretrained(folder / name) for name in names}
    for name in names[1:]:
        found[name].pad_token = "!"
        # It would bring the other token back.
        (folder / name / "special_tokens_map.json").unlink()
    return found


if __name__ == "__main__":
    main()
