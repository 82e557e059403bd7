"""The benchmarks' tiny bases as tests ask for them: 32 px, random weights, steps of a moment."""

from pathlib import Path

from benchmarks.bases import random_base
from dreambooth.models.sdxl import StableDiffusionXL

TINY_PX = 32


def tiny_base(
    folder: Path, *, prediction_type: str = "epsilon", num_text_layers: int = 2, seed: int = 0, is_sd2: bool = False
) -> Path:
    """Write a base in SD 1.5's topology into `folder`, in fp32, and return it; `is_sd2` makes it of SD 2.x's kind."""
    changes = {
        "unet": {"use_linear_projection": is_sd2},
        "text_encoder": {"num_hidden_layers": num_text_layers, "hidden_act": "gelu" if is_sd2 else "quick_gelu"},
    }
    return random_base(folder, "tiny", seed, changes=changes, scheduler={"prediction_type": prediction_type})


def tiny_sdxl_base(
    folder: Path, *, seed: int = 0, zeros_for_nothing: bool = True, prediction_type: str = "epsilon"
) -> Path:
    """Write a shallow base of SDXL's kind into `folder`, in fp32, and return it."""
    return random_base(
        folder, "sdxl_tiny", seed, scheduler={"prediction_type": prediction_type},
        family=StableDiffusionXL(zeros_for_nothing=zeros_for_nothing),
    )  # fmt: skip
