"""Which weights a LoRA file holds, and under which names: the naming of kohya-ss/sd-scripts, `networks/lora.py`.

A module is named after its path in diffusers' UNet or in transformers' text encoder, with underscores for dots. Before
version 5.6, transformers put `text_model` into every path of CLIP's; the naming keeps it. Other tools' keys are
converted to these names (`lora_key`); `formats.lora_kinds` describes what cannot be read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from dreambooth.formats.sdxl_keys import from_original_name

LoraTargets = Literal["attention", "linear", "all"]
LORA_TARGETS: tuple[LoraTargets, ...] = get_args(LoraTargets)

PREFIXES = {
    "unet": "lora_unet_", "text_encoder": "lora_te_text_model_", "text_encoder_2": "lora_te2_text_model_",
}  # fmt: skip
_TEXT_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"

# Each set includes the ones before it. `linear` is sd-scripts' default: 192 + 72 modules in SD 1.5; `all` adds those of
# its `conv_dim`, 350 in all.
_PATHS: dict[LoraTargets, dict[str, str]] = {
    "attention": {
        "unet": r".*attn[12]\.to_(q|k|v|out\.0)",
        "text encoder": r"encoder\..*self_attn\.(q|k|v|out)_proj",
    },
    "linear": {
        "unet": r".*\.ff\.net\.(0\.proj|2)|.*attentions\.\d+\.proj_(in|out)",
        "text encoder": r"encoder\..*mlp\.fc[12]",
    },
    "all": {
        "unet": r".*resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|.*(down|up)samplers\.0\.conv",
        "text encoder": r"(?!)",
    },
}


@dataclass(frozen=True)
class LoraModule:
    """One weight that a LoRA changes: its name in the file, its part, and its name in that part."""

    name: str
    part: str
    weight: str


def lora_modules(
    weights: Mapping[str, Iterable[str]], targets: LoraTargets, unseen_layers: Iterable[tuple[str, int]] = ()
) -> list[LoraModule]:
    """Return the modules of these parts' weights in the target set, in the order of their names in the file.

    unseen_layers: by part, how many of its last layers are left out because they affect no image: factors there would
    never get a gradient (`Layout.unseen_layers`).
    """
    num_unseen = dict(unseen_layers)
    sets = LORA_TARGETS[: LORA_TARGETS.index(targets) + 1]
    found = []
    for part, names in weights.items():
        kind = "unet" if part == "unet" else "text encoder"
        wanted = re.compile("|".join(_PATHS[one][kind] for one in sets))
        for weight in without_last_layers(list(names), num_unseen.get(part, 0)):
            path = weight.removesuffix(".weight").removeprefix("text_model.")
            if weight.endswith(".weight") and wanted.fullmatch(path):
                found.append(lora_module(part, weight))
    return sorted(found, key=lambda module: module.name)


def without_last_layers(names: list[str], number: int) -> list[str]:
    """Return a text encoder's names without those of its last layers, and of the norm after them."""
    layers = {name: int(match[1]) for name in names if (match := _TEXT_LAYER.search(name))}
    end = max(layers.values(), default=-1) + 1 - number
    return [name for name in names if layers.get(name, -1) < end and not (number and "final_layer_norm" in name)]


def lora_module(part: str, weight: str) -> LoraModule:
    """Return the module of a part's weight, whether or not it is a target."""
    path = weight.removesuffix(".weight").removeprefix("text_model.")
    return LoraModule(PREFIXES[part] + path.replace(".", "_"), part, weight)


def part_of(module: str) -> str:
    """Return the part of a model to which a module of this name in a file belongs."""
    return next(part for part, prefix in PREFIXES.items() if module.startswith(prefix))


def kind_of_weight(name: str) -> str:
    """Return the kind of a UNet or text encoder weight, for the report on what a LoRA leaves out."""
    if "embed" in name and "time_embedding" not in name:
        return "embeddings"
    if "norm" in name or name.endswith(".bias"):
        return "norms and biases"
    if re.search(r"resnets|samplers", name):
        return "convolutions"
    if re.search(r"conv_in|conv_out|time_embedding", name):
        return "first and last layers"
    return "attention" if re.search(r"attn\d?\.", name) else "other linear layers"


# Dialects ------------------------------------------------------------------------------------------------------------

Leaf = Literal["down", "up", "mid", "alpha"]
Dialect = Literal["kohya", "diffusers", "peft"]

# Prefixes of the path: kohya's own, that without `text_model` (sd-scripts on newer transformers) and that of diffusers'
# converter; diffusers' with its parts, peft's own, and the first LoRAs of diffusers, of the UNet alone.
_BEGINNINGS: tuple[tuple[Dialect, str, str], ...] = (
    ("kohya", "unet", r"lora_unet_"),
    ("kohya", "text_encoder", r"lora_te1?_(?:text_model_)?"),
    ("diffusers", "unet", r"unet\."),
    ("kohya", "text_encoder_2", r"lora_te2_(?:text_model_)?"),
    ("diffusers", "text_encoder", r"text_encoder\.(?:text_model\.)?"),
    ("diffusers", "text_encoder_2", r"text_encoder_2\.(?:text_model\.)?"),
    ("peft", "unet", r"base_model\.model\.(?=(?:down_blocks|mid_block|up_blocks)\.|conv_|time_)"),
    ("peft", "text_encoder", r"base_model\.model\.(?:text_model\.)?(?=encoder\.)"),
    ("diffusers", "unet", r"(?=(?:down_blocks|mid_block|up_blocks)\.)"),
)
# Suffixes: kohya's, LyCORIS's middle of a convolution in three steps (Tucker), peft's with or without the adapter's
# name, and diffusers' three from before it used peft.
_ENDS: tuple[tuple[Leaf, str], ...] = (
    ("down", r"(?:\.lora_down|\.lora_A(?:\.\w+)?|\.lora(?:_linear_layer)?\.down|_lora\.down)\.weight"),
    ("up", r"(?:\.lora_up|\.lora_B(?:\.\w+)?|\.lora(?:_linear_layer)?\.up|_lora\.up)\.weight"),
    ("mid", r"\.lora_mid\.weight"),
    ("alpha", r"\.alpha"),
)
# The layers of diffusers' attention processors, by their current paths.
_OF_PROCESSORS = (
    (r"\.processor\.", "."), (r"\.self_attn\.to_out$", ".self_attn.out_proj"), (r"\.to_out$", ".to_out.0"),
    (r"\.self_attn\.to_([qkv])$", r".self_attn.\1_proj"),
)  # fmt: skip


@dataclass(frozen=True)
class LoraKey:
    """The meaning of a tensor's key: its module, by name and part, the module's path in the part, and the factor it is.

    path: with dots if the naming has them.
    """

    name: str
    part: str
    path: str
    leaf: Leaf
    dialect: Dialect


def lora_key(key: str) -> LoraKey | None:
    """Return the meaning of a key, None if it is not a factor in a supported naming."""
    begun = next(((dialect, part, match) for dialect, part, one in _BEGINNINGS if (match := re.match(one, key))), None)
    ended = next(((leaf, match) for leaf, one in _ENDS if (match := re.search(f"{one}$", key))), None)
    if begun is None or ended is None:
        return None
    (dialect, part, beginning), (leaf, end) = begun, ended
    path = key[beginning.end() : end.start()]
    if end[0].startswith("_lora"):
        for old, new in _OF_PROCESSORS:
            path = re.sub(old, new, path)
    if part == "unet":
        path = from_original_name(path)
    return LoraKey(PREFIXES[part] + path.replace(".", "_"), part, path, leaf, dialect) if path else None
