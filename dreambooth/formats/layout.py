"""The layout of each family's models on disk, as data: parts, files and index; and the family of a model.

Everything here works without torch and before a model is loaded.
"""

import itertools
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dreambooth.errors import BaseModelError
from dreambooth.formats import sdxl_keys
from dreambooth.formats.open_clip import OPEN_CLIP_PREFIX
from dreambooth.formats.other_kinds import kind_of_unet, refusal, refuse_other_kinds
from dreambooth.formats.tensor_names import pickled_names, safetensors_header

FamilyName = Literal["sd1", "sd2", "sdxl"]

MODEL_INDEX = "model_index.json"
# Our card: what a model says of itself, and what a LoRA adds to.
CARD = "card.json"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+\.safetensors")
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
TOKENIZER_FILES = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One part of a model: its folder, the class that reads it, and the prefix of its weight files.

    can_learn: whether a training may change its weights; needs_range: whether its numbers overflow fp16, so that it
    computes in fp32 instead.
    """

    name: str
    library: str
    class_name: str
    weights_stem: str
    can_learn: bool
    needs_range: bool = False

    @property
    def config_file(self) -> str:
        """Return the name of its configuration, relative to the model's folder."""
        return f"{self.name}/config.json"

    @property
    def pickle_stem(self) -> str:
        """Return the prefix of its weight files before safetensors: transformers used another name."""
        return "pytorch_model" if self.library == "transformers" else self.weights_stem


@dataclass(frozen=True)
class Layout:
    """The parts and files of a family's models.

    title: its usual name; tokenizers: the folders of the tokenizers; scheduler: the class that a saved model names;
    open_clip: whether single files have the text encoder under open_clip's names; absent: pipeline components that are
    never present, which the index has to say; architecture, lora_version: the family's identifiers in file headers, by
    https://github.com/Stability-AI/ModelSpec and by sd-scripts; used_layer: the layer of the text encoders whose states
    the UNet sees, counted from the last; unseen_layers: by text encoder, how many of its last layers affect no image.
    """

    family: FamilyName
    title: str
    pipeline: str
    parts: tuple[Part, ...]
    tokenizers: tuple[str, ...]
    scheduler: str = "DDIMScheduler"
    open_clip: bool = False
    architecture: str = "stable-diffusion-v1"
    lora_version: str = "sd_v1"
    used_layer: int = 1
    absent: tuple[str, ...] = ()
    unseen_layers: tuple[tuple[str, int], ...] = ()

    @property
    def short_title(self) -> str:
        """Return the family's name for lists, such as `SD 1.x`."""
        return self.title.replace("Stable Diffusion XL", "SDXL").replace("Stable Diffusion", "SD")

    @property
    def part_names(self) -> tuple[str, ...]:
        """Return the names of the parts, in order."""
        return tuple(part.name for part in self.parts)

    @property
    def learning_parts(self) -> tuple[str, ...]:
        """Return the names of the parts whose weights a training may change."""
        return tuple(part.name for part in self.parts if part.can_learn)

    def lora_name(self, module: str) -> str:
        """Return a module's name (`formats.lora_keys`) in LoRA files for this family."""
        return sdxl_keys.lora_name(module) if self.family == "sdxl" else module

    @property
    def hub_tags(self) -> tuple[str, str]:
        """Return the tags by which the Hub finds models of this family."""
        name = "stable-diffusion-xl" if self.family == "sdxl" else "stable-diffusion"
        return name, f"{name}-diffusers"

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Return the names of the text encoders, in the order of their tokenizers."""
        return tuple(part.name for part in self.parts if part.library == "transformers")

    @property
    def needed_files(self) -> tuple[str, ...]:
        """Return the files without which a folder is not a complete model, apart from weights and tokenizers."""
        return (MODEL_INDEX, SCHEDULER_CONFIG, *(part.config_file for part in self.parts))

    @property
    def text_patterns(self) -> tuple[str, ...]:
        """Return patterns of the files besides weights in a repository of such a model, for a download."""
        return ("README.md", MODEL_INDEX, "scheduler/*.json", *(f"{name}/*" for name in self.tokenizers),
                "*/config.json")  # fmt: skip

    @property
    def saved_files(self) -> tuple[str, ...]:
        """Return patterns of all files of a saved model; other files in its folder are the user's."""
        return (
            MODEL_INDEX, CARD, SCHEDULER_CONFIG,
            *(part.config_file for part in self.parts),
            *(f"{part.name}/{part.weights_stem}*.safetensors*" for part in self.parts),
            *(f"{folder}/{name}" for folder in self.tokenizers for name in TOKENIZER_FILES),
        )  # fmt: skip

    def model_index(self, diffusers_version: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the contents of model_index.json, with keys in alphabetical order, as diffusers writes them.

        options: what a pipeline takes besides its components.
        """
        index: dict[str, Any] = {
            "_class_name": self.pipeline,
            "_diffusers_version": diffusers_version,
            "scheduler": ["diffusers", self.scheduler],
            **options,
        }
        index |= {part.name: [part.library, part.class_name] for part in self.parts}
        index |= {name: ["transformers", "CLIPTokenizer"] for name in self.tokenizers}
        index |= {name: [None, None] for name in self.absent}
        return dict(sorted(index.items()))


SD_PARTS = (
    Part("unet", "diffusers", "UNet2DConditionModel", "diffusion_pytorch_model", can_learn=True),
    Part("vae", "diffusers", "AutoencoderKL", "diffusion_pytorch_model", can_learn=False),
    Part("text_encoder", "transformers", "CLIPTextModel", "model", can_learn=True),
)
SD_ABSENT = ("feature_extractor", "image_encoder", "safety_checker")
SD1 = Layout("sd1", "Stable Diffusion 1.x", "StableDiffusionPipeline", SD_PARTS, ("tokenizer",), absent=SD_ABSENT)
SD2 = Layout(
    "sd2", "Stable Diffusion 2.x", "StableDiffusionPipeline", SD_PARTS, ("tokenizer",), open_clip=True,
    architecture="stable-diffusion-v2", lora_version="sd_v2", used_layer=2, absent=SD_ABSENT,
)  # fmt: skip
SDXL_PARTS = (
    Part("unet", "diffusers", "UNet2DConditionModel", "diffusion_pytorch_model", can_learn=True),
    Part("vae", "diffusers", "AutoencoderKL", "diffusion_pytorch_model", can_learn=False, needs_range=True),
    Part("text_encoder", "transformers", "CLIPTextModel", "model", can_learn=True),
    Part("text_encoder_2", "transformers", "CLIPTextModelWithProjection", "model", can_learn=True),
)
SDXL = Layout(
    "sdxl", "Stable Diffusion XL", "StableDiffusionXLPipeline", SDXL_PARTS, ("tokenizer", "tokenizer_2"),
    scheduler="EulerDiscreteScheduler", architecture="stable-diffusion-xl-v1-base", lora_version="sdxl_base_v1-0",
    used_layer=2, absent=("feature_extractor", "image_encoder"),
    # The second encoder's last layer counts: the pooled vector is computed from it.
    unseen_layers=(("text_encoder", 1),),
)  # fmt: skip
LAYOUTS: dict[FamilyName, Layout] = {layout.family: layout for layout in (SD1, SD2, SDXL)}

# What may exist before the family is known: the files of any family.
ALL_PARTS = tuple(dict.fromkeys(part for layout in LAYOUTS.values() for part in layout.parts))
ALL_TEXT_PATTERNS = tuple(dict.fromkeys(itertools.chain(*(layout.text_patterns for layout in LAYOUTS.values()))))
ALL_SAVED_FILES = tuple(dict.fromkeys(itertools.chain(*(layout.saved_files for layout in LAYOUTS.values()))))


def saved_step_kind(folder: Path) -> Literal["model", "lora"] | None:
    """Return the kind of what is saved in a step's folder, None if no step is saved in it, or not completely."""
    if (folder / MODEL_INDEX).is_file():
        return "model"
    return None if lora_file(folder) is None else "lora"


def step_contents(folder: Path) -> str:
    """Return a description of a step's folder for lists: `LoRA, SD 1.x`; empty if no step is saved in it."""
    words = {"model": "full model", "lora": "LoRA"}
    kind = saved_step_kind(folder)
    return "" if kind is None else f"{words[kind]}, {layout_of(folder).short_title}"


def lora_file(folder: Path) -> Path | None:
    """Return the LoRA file of a saved step, as its card names it; None if there is none."""
    about = _lora_card(folder)
    if about is None or not PLAIN_NAME.fullmatch(name := str(about.get("file"))):
        return None
    return folder / name if (folder / name).is_file() else None


def lora_at(place: Path) -> Path | None:
    """Return the LoRA file of a path: the file itself, or the one in a step's folder; None if there is none."""
    return place if place.is_file() else lora_file(place)


def _lora_card(folder: Path) -> Mapping[str, Any] | None:
    about = (_read_config(folder / CARD) or {}).get("lora")
    return about if isinstance(about, dict) else None


# Which family --------------------------------------------------------------------------------------------------------


def family_of(source: Path | str) -> FamilyName:
    """Return the family of a diffusers folder, a file in the original layout, or a Hub id in the local cache.

    Reads configurations, a file's header, or the names in a checkpoint's pickle, without running anything. Raises
    BaseModelError for other kinds of models, which it names, and for anything that cannot be identified.
    """
    if isinstance(source, str):
        return _family_of_hub_id(source)
    return _family_of_file(source) if source.is_file() else _family_of_folder(source)


def folder_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return a folder's model_index.json and its UNet's configuration; None for one that cannot be read."""
    index, unet = _read_config(folder / MODEL_INDEX), _read_config(folder / "unet" / "config.json")
    return None if index is None or unet is None else (index, unet)


def layout_of(folder: Path) -> Layout:
    """Return the layout of a model's folder according to its UNet's configuration, SD 1.x's if there is none.

    For a saved LoRA it is that of its base. Refuses nothing: `family_of` does.
    """
    if (about := _lora_card(folder)) is not None:
        return next((layout for name, layout in LAYOUTS.items() if name == about.get("family")), SD1)
    return LAYOUTS[_family_of_unet(_read_config(folder / "unet" / "config.json") or {})]


def family_of_names(names: Collection[str]) -> FamilyName:
    """Return the family of a file in the original layout with tensors of these names."""
    if any(name.startswith(sdxl_keys.OPEN_CLIP_PREFIX) for name in names):
        return "sdxl"
    return "sd2" if any(name.startswith(OPEN_CLIP_PREFIX) for name in names) else "sd1"


def cached_folder(repository: str) -> Path | None:
    """Return the folder of a Hub model in the local cache, None if its configurations are not in it.

    Raises ValueError (HFValidationError) for a name that cannot be on the Hub.
    """
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repository, file) for file in (MODEL_INDEX, "unet/config.json")]
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths[0].parent if len(paths) == len(found) else None


def _family_of_unet(unet: Mapping[str, Any]) -> FamilyName:
    if unet.get("addition_embed_type") == "text_time":
        return "sdxl"
    return "sd2" if unet.get("use_linear_projection") else "sd1"


def _family_of_folder(folder: Path) -> FamilyName:
    configs = folder_configs(folder)
    if configs is None:
        raise BaseModelError(
            f"{folder} is not a diffusers model.",
            "model_index.json or unet/config.json is missing or damaged.",
            "Name the folder that holds model_index.json.",
        )
    index, unet = configs
    kind = str(index.get("_class_name"))
    family = _family_of_unet(unet)
    if family == "sdxl" and index.get("text_encoder", [None])[0] is None:
        raise refusal(folder.name, "the refiner of SDXL")
    if ("XL" in kind) != (family == "sdxl") or (family != "sdxl" and unet.get("addition_embed_type")):
        raise refusal(folder.name, f"a {kind} whose UNet is of another kind")
    if (other := kind_of_unet(unet)) is not None:
        raise refusal(folder.name, other)
    if kind.startswith("Onnx"):
        raise refusal(folder.name, "an ONNX model")
    if not kind.startswith("StableDiffusion"):
        raise refusal(folder.name, f"a {kind}")
    return family


def _family_of_file(path: Path) -> FamilyName:
    shapes: dict[str, tuple[int, ...] | None] | None
    if path.suffix.lower() == ".safetensors":
        header = safetensors_header(path)
        shapes = None if header is None else {name: _shape(about) for name, about in header.tensors.items()}
    else:
        names = pickled_names(path)
        shapes = None if names is None else dict.fromkeys(names)
    if shapes is None:
        raise BaseModelError(
            f'"{path.name}" cannot be read.', "It is damaged, or no file of weights.",
            "Choose the .safetensors or .ckpt file of an SD 1.x, 2.x or SDXL model.",
        )  # fmt: skip
    refuse_other_kinds(path.name, shapes)
    return family_of_names(shapes)


def _family_of_hub_id(repository: str) -> FamilyName:
    from huggingface_hub.errors import HFValidationError

    try:
        folder = cached_folder(repository)
    except (HFValidationError, OSError):
        folder = None
    if folder is None:
        raise BaseModelError(
            f'The kind of model of "{repository}" is not known.', "It is not in the local cache.",
            "Check the name, or download the model first.",
        )  # fmt: skip
    return _family_of_folder(folder)


def _read_config(file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _shape(about: Any) -> tuple[int, ...] | None:
    shape = about.get("shape") if isinstance(about, dict) else None
    return tuple(shape) if isinstance(shape, list) and all(isinstance(size, int) for size in shape) else None
