"""Which weights a LoRA file holds, and under which names: the dialect of kohya-ss/sd-scripts, `networks/lora.py`.

A module is called after its path in diffusers' UNet or in transformers' text encoder, with underscores for dots. Before
version 5.6, transformers put `text_model` into every path of CLIP's; the dialect keeps it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

LoraTargets = Literal["attention", "linear", "all"]
LORA_TARGETS: tuple[LoraTargets, ...] = get_args(LoraTargets)

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"

# Each set with the ones before it. `linear` is sd-scripts' own default: 192 + 72 modules in SD 1.5; `all` adds what its
# `conv_dim` does, 350 in all.
_PATHS: dict[LoraTargets, dict[str, str]] = {
    "attention": {
        "unet": r".*attn[12]\.to_(q|k|v|out\.0)",
        "text_encoder": r"encoder\..*self_attn\.(q|k|v|out)_proj",
    },
    "linear": {
        "unet": r".*\.ff\.net\.(0\.proj|2)|.*attentions\.\d+\.proj_(in|out)",
        "text_encoder": r"encoder\..*mlp\.fc[12]",
    },
    "all": {
        "unet": r".*resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|.*(down|up)samplers\.0\.conv",
        "text_encoder": r"(?!)",
    },
}


@dataclass(frozen=True)
class LoraModule:
    """One weight that a LoRA changes: its name in the file, the part it belongs to, and its name in that part."""

    name: str
    part: str
    weight: str


def lora_modules(weights: Mapping[str, Iterable[str]], targets: LoraTargets) -> list[LoraModule]:
    """Return the modules of these parts' weights that the set holds, in the order of their names in the file."""
    sets = LORA_TARGETS[: LORA_TARGETS.index(targets) + 1]
    found = []
    for part, names in weights.items():
        wanted = re.compile("|".join(_PATHS[one][part] for one in sets))
        for weight in names:
            path = weight.removesuffix(".weight").removeprefix("text_model.")
            if weight.endswith(".weight") and wanted.fullmatch(path):
                found.append(LoraModule(PREFIXES[part] + path.replace(".", "_"), part, weight))
    return sorted(found, key=lambda module: module.name)


def kind_of_weight(name: str) -> str:
    """Return what kind a weight of UNet or text encoder is, as a person is told of those that a LoRA leaves out."""
    if "embed" in name and "time_embedding" not in name:
        return "embeddings"
    if "norm" in name or name.endswith(".bias"):
        return "norms and biases"
    if re.search(r"resnets|samplers", name):
        return "convolutions"
    if re.search(r"conv_in|conv_out|time_embedding", name):
        return "first and last layers"
    return "attention" if re.search(r"attn\d?\.", name) else "other linear layers"
