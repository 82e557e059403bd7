"""Kinds of adapters other than LoRAs, and the family an adapter is for.

Everything follows from names, shapes and the header's metadata.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from dreambooth.formats import layout

# A key, and the kind of a file that has it. They change weights differently than by up . down.
OTHER_ADAPTERS: tuple[tuple[str, str], ...] = (
    (r".*\.hada_[wt]\d", "a LoHa (LyCORIS)"),
    (r".*\.lokr_[wt]\d", "a LoKr (LyCORIS)"),
    (r".*\.(dora_scale|lora_magnitude_vector)", "a DoRA"),
    (r"oft_(unet|te)|.*\.oft_", "an OFT or BOFT"),
    (r".*\.[ab][12]\.weight$", "a GLoRA (LyCORIS)"),
    (r".*\.on_input$", "an IA3 (LyCORIS)"),
    (r".*\.(diff|diff_b|set_weight)$", "a file of whole differences of weights"),
    (r".*\.[wb]_norm$", "a LoCon that also changes norms"),
    (r".*\.lora(_(down|up|B(\.\w+)?)|\.(down|up))\.bias$", "a LoRA with biases"),
)
# Text encoder embeddings that some trainers put into a LoRA's file.
EMBEDDING = re.compile(r"bundle_emb\.")

SD1, SD2, SDXL = READ_FAMILIES = tuple(one.short_title for one in (layout.SD1, layout.SD2, layout.SDXL))
_LATER_FAMILIES: tuple[tuple[str, str], ...] = (
    (
        r"(.*[._])?(joint|double|single)_(transformer_)?blocks[._]|(lora_)?transformer[._]|diffusion_model\.",
        "a later family (SD 3, FLUX or the like)",
    ),
)
_SDXL = re.compile(
    r"lora_te2_|text_encoder_2\.|lora_unet_(input_blocks|middle_block|output_blocks|label_emb)_"
    r"|(lora_)?unet[._].*transformer_blocks[._][1-9]"
)
# The width of the text states that condition the UNet.
_OF_TEXT_WIDTH = {768: SD1, 1024: SD2, 2048: SDXL, 1280: "the refiner of SDXL"}
_OF_HEADER = (
    ("ss_base_model_version", (("sd_v1", SD1), ("sd_v2", SD2), ("sdxl", SDXL))),
    ("modelspec.architecture",
     (("stable-diffusion-v1", SD1), ("stable-diffusion-v2", SD2), ("stable-diffusion-xl", SDXL))),
)  # fmt: skip

_LORA_KEY = re.compile(r".*lora[._]")


def has_lora_keys(keys: Iterable[str]) -> bool:
    """Return whether a key names a factor, in any naming."""
    return any(map(_LORA_KEY.match, keys))


def other_adapter(keys: Iterable[str]) -> str | None:
    """Return the kind of adapter of a file with these keys, if it is not a LoRA."""
    keys = list(keys)
    return next((kind for pattern, kind in OTHER_ADAPTERS if any(re.match(pattern, key) for key in keys)), None)


def lora_family(
    keys: Iterable[str], shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]
) -> tuple[str, int | None]:
    """Return the family a LoRA is for, empty if unknown, and the width of its text states.

    keys: as in the file; shapes: of the changed weights, by the modules' names in kohya's naming.
    """
    keys = list(keys)
    width = text_width(shapes)
    if any(map(_SDXL.match, keys)):
        return SDXL, width
    for pattern, family in _LATER_FAMILIES:
        if any(re.match(pattern, key) for key in keys):
            return family, width
    if width in _OF_TEXT_WIDTH:
        return _OF_TEXT_WIDTH[width], width
    for name, families in _OF_HEADER:
        for beginning, family in families:
            if metadata.get(name, "").lower().startswith(beginning):
                return family, width
    return "", width


def text_width(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Return the width of the text encoder states these weights are for, None if none of them tells."""
    for pattern in (r".*attn2_to_[kv]$", r"lora_te_.*self_attn_[qkv]_proj$"):
        for name, shape in shapes.items():
            if re.match(pattern, name) and len(shape) > 1:
                return shape[1]
    return None
