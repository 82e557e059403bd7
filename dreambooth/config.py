"""The settings of every task: one typed object each, from which the form, the command line and the README come.

A field carries its range, unit and a sentence (`setting`); `describe` hands them out. Names and defaults are those of
the well-known `train_dreambooth.py` where it has them, since its words are the users' words.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.limits import is_folder, plain_name_problem, run_path_problem, shortly, text_problems

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"

Kind = Literal["person", "pet", "object", "style"]
Precision = Literal["no", "fp16", "bf16"]
SavePrecision = Literal["fp16", "fp32", "bf16"]
Attention = Literal["sdpa", "xformers"]
Schedule = Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
Sampler = Literal["DDIM", "DPM++ 2M", "DPM++ 2M Karras", "Euler", "Euler a"]
SAMPLERS: tuple[Sampler, ...] = typing.get_args(Sampler)
Group = Literal["model", "photos", "prior", "training", "optimizer", "memory", "samples", "saving"]


def setting(
    default: Any,
    sentence: str,
    group: Group,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """Declare a field with what a person needs to know about it; `low` and `high` are inclusive."""
    return dataclasses.field(
        default=default, metadata={"sentence": sentence, "group": group, "unit": unit, "low": low, "high": high}
    )


@dataclass(frozen=True)
class FieldInfo:
    """A field as the form, the command line and the README show it."""

    name: str
    type: type
    optional: bool
    choices: tuple[str, ...]
    default: Any
    sentence: str
    group: Group
    unit: str
    low: float | None
    high: float | None

    @property
    def range_text(self) -> str:
        """Return the allowed values in words, such as `1 to 64 pictures`."""
        if self.choices:
            return ", ".join(self.choices)
        low, high = (None if bound is None else _plain(bound) for bound in (self.low, self.high))
        bounds = {
            (True, True): f"{low} to {high}",
            (True, False): f"at least {low}",
            (False, True): f"at most {high}",
        }.get((low is not None, high is not None), "")
        return f"{bounds} {self.unit}".strip()


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def describe(config_type: type) -> list[FieldInfo]:
    """Return the fields of a settings class that carry a sentence, in the order of their declaration."""
    hints = typing.get_type_hints(config_type)
    described = []
    for field in dataclasses.fields(config_type):
        if "sentence" not in field.metadata:
            continue
        kind, optional, choices = _unpacked(hints[field.name])
        described.append(
            FieldInfo(
                name=field.name, type=kind, optional=optional, choices=choices, default=field.default, **field.metadata
            )
        )
    return described


def _unpacked(hint: Any) -> tuple[type, bool, tuple[str, ...]]:
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if optional:
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is Literal:
        return str, optional, typing.get_args(hint)
    return hint, optional, ()


@dataclass(frozen=True)
class Concept:
    """One thing to teach: its photos and the words for it, and optionally the class it belongs to."""

    instance_prompt: str
    instance_data_dir: str
    class_prompt: str | None = None
    class_data_dir: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything a run depends on; the same values on the same machine give the same run."""

    concepts: tuple[Concept, ...] = ()

    pretrained_model_name_or_path: str = setting(
        SD15, "What the run starts from: a Hub id, a diffusers folder, one .safetensors or .ckpt file, or `starter`.",
        "model",
    )  # fmt: skip
    pretrained_vae_name_or_path: str | None = setting(
        None, "Another VAE, used for training, samples and the saved model alike.", "model"
    )
    revision: str | None = setting(None, "Branch, tag or commit of the base on the Hub.", "model")
    variant: str | None = setting(None, "File variant of the base on the Hub, such as fp16.", "model")
    tokenizer_name: str | None = setting(None, "Another tokenizer than the base's own.", "model")
    output_dir: str | None = setting(None, "Folder of the run; a new one under the data folder when left out.", "model")
    seed: int | None = setting(
        None, "Start of all randomness; drawn and recorded when left out.", "model", low=0, high=2**63 - 1
    )

    resolution: int = setting(
        512, "Side of the square the photos are cropped to; the base's native size is best.", "photos",
        unit="px", low=16, high=2048,
    )  # fmt: skip
    center_crop: bool = setting(False, "Crop around the middle instead of at random along the longer side.", "photos")
    hflip: bool = setting(False, "Mirror half of the crops; not for lettering or faces with a parting.", "photos")
    num_crop_variants: int = setting(
        8, "Crops and flips prepared of each photo; which one a step uses follows from the seed.", "photos",
        unit="crops per photo", low=1, high=64,
    )  # fmt: skip
    read_prompts_from_txts: bool = setting(
        False, "Read each photo's caption from the .txt file of the same name instead of the instance prompt.", "photos"
    )
    pad_tokens: bool = setting(False, "Pad prompts to 77 tokens, as they are when pictures are generated.", "photos")

    with_prior_preservation: bool = setting(
        False, "Train on pictures of the class as well, so that the rest of the class is not forgotten.", "prior"
    )
    prior_loss_weight: float = setting(
        1.0, "How much the class pictures count against the photos.", "prior", low=0, high=100
    )
    num_class_images: int = setting(
        100, "Class pictures per concept; missing ones are generated.", "prior", unit="pictures", low=1, high=10_000
    )
    class_guidance_scale: float = setting(
        7.5, "Guidance scale of generated class pictures; high ones teach the class harsher colors.", "prior",
        low=0, high=50,
    )  # fmt: skip
    sample_batch_size: int = setting(4, "Class pictures generated at a time.", "prior", unit="pictures", low=1, high=64)

    train_text_encoder: bool = setting(
        False, "Teach the text encoder too: a closer likeness for more memory.", "training"
    )
    text_encoder_lr: float | None = setting(
        None, "The text encoder's own learning rate; the UNet's when left out.", "training", low=1e-9, high=1.0
    )
    text_encoder_stop_step: int | None = setting(
        None, "The step from which on the text encoder is left as it is.", "training", unit="steps", low=1, high=10**6
    )
    train_batch_size: int = setting(
        4, "Photos per micro-batch; with prior preservation as many class pictures come on top.", "training",
        unit="photos", low=1, high=64,
    )  # fmt: skip
    snr_gamma: float | None = setting(
        None, "Min-SNR weighting: nearly noiseless steps count less, so that shape and colour count more; often 5.",
        "training", low=0.01, high=1000,
    )  # fmt: skip
    num_train_epochs: int = setting(
        1, "Passes over the larger of photos and class pictures; max_train_steps overrides it.", "training",
        unit="passes", low=1, high=100_000,
    )  # fmt: skip
    max_train_steps: int | None = setting(
        None, "Optimizer updates in all.", "training", unit="steps", low=1, high=1_000_000
    )
    gradient_accumulation_steps: int = setting(
        1, "Micro-batches added up before each update; a step counts once.", "training",
        unit="micro-batches", low=1, high=256,
    )  # fmt: skip

    learning_rate: float = setting(5e-6, "Size of the UNet's updates.", "optimizer", low=1e-9, high=1.0)
    scale_lr: bool = setting(False, "Multiply the rate by accumulation, batch size and number of devices.", "optimizer")
    lr_scheduler: Schedule = setting("constant", "How the learning rate changes over the run.", "optimizer")
    lr_warmup_steps: int = setting(
        500, "Steps over which the rate rises from zero (schedules with a warm-up).", "optimizer",
        unit="steps", low=0, high=1_000_000,
    )  # fmt: skip
    use_8bit_adam: bool = setting(False, "Keep the optimizer's states in 8 bits (bitsandbytes).", "optimizer")
    adam_beta1: float = setting(0.9, "Decay of AdamW's first moment.", "optimizer", low=0, high=0.9999)
    adam_beta2: float = setting(0.999, "Decay of AdamW's second moment.", "optimizer", low=0, high=0.99999)
    adam_weight_decay: float = setting(1e-2, "AdamW's decoupled weight decay.", "optimizer", low=0, high=10)
    adam_epsilon: float = setting(1e-8, "AdamW's guard against division by zero.", "optimizer", low=0, high=1)
    max_grad_norm: float = setting(
        1.0, "Gradients are scaled down to this global norm; 0 leaves them as they are.", "optimizer", low=0, high=1e6
    )
    use_ema: bool = setting(False, "Save a moving average of the weights instead of the last ones.", "optimizer")
    ema_decay: float = setting(0.999, "How slowly the moving average follows.", "optimizer", low=0.5, high=0.99999)

    mixed_precision: Precision = setting("no", "Arithmetic of the step, over weights kept in fp32.", "memory")
    gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass: less memory, more time.", "memory"
    )
    attention: Attention = setting("sdpa", "Attention kernels for training and samples.", "memory")
    not_cache_latents: bool = setting(
        False, "Encode every crop when its step comes instead of a pool beforehand; keeps the VAE in memory.", "memory"
    )

    save_sample_prompt: str | None = setting(
        None, "Pictures of this prompt are made at every save, from the same seeds; one prompt a line.", "samples"
    )
    save_sample_negative_prompt: str | None = setting(None, "What the sample pictures should not show.", "samples")
    n_save_sample: int = setting(4, "Sample pictures per save.", "samples", unit="pictures", low=1, high=64)
    save_guidance_scale: float = setting(7.5, "Guidance scale of the sample pictures.", "samples", low=0, high=50)
    save_infer_steps: int = setting(
        20, "Denoising steps of samples and class pictures.", "samples", unit="steps", low=1, high=1000
    )

    save_interval: int = setting(
        10_000, "Steps between saved models; a last one is always saved.", "saving", unit="steps", low=1, high=10**6
    )
    save_min_steps: int = setting(0, "No saved models before this step.", "saving", unit="steps", low=0, high=10**6)
    save_precision: SavePrecision = setting("fp16", "Number format of the saved models.", "saving")
    save_total_limit: int | None = setting(
        None, "Newest saved models to keep; left out, all. Samples and settings of the others stay.", "saving",
        unit="models", low=1, high=1000,
    )  # fmt: skip
    checkpointing_steps: int | None = setting(
        None, "Steps between exact states to resume from; left out, about ten minutes; 0: only with saved models.",
        "saving", unit="steps", low=0, high=10**6,
    )  # fmt: skip
    checkpoints_total_limit: int | None = setting(
        None, "Newest exact states to keep; left out, two where there is room, else one.", "saving", low=1, high=100
    )
    log_interval: int = setting(10, "Steps between two lines of the log.", "saving", unit="steps", low=1, high=10_000)
    logging_dir: str = setting("logs", "Folder for TensorBoard under `0/`, where TensorBoard is installed.", "saving")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` gives the same settings back."""
        return dataclasses.asdict(self) | {"concepts": [dataclasses.asdict(concept) for concept in self.concepts]}

    def departures(self) -> dict[str, Any]:
        """Return what differs from the defaults; a setting that a later version adds changes nothing in it."""
        defaults = type(self)().to_json()
        return {name: value for name, value in self.to_json().items() if value != defaults[name]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read settings written by `to_json`; raises ConfigError naming every unknown or mistyped field."""
        if not isinstance(values, Mapping):
            raise ConfigError([FieldProblem("settings", "must be a JSON object.")])
        problems = _unknown_fields(cls, values)
        concepts: tuple[Concept, ...] = ()
        try:
            concepts = read_concepts(values.get("concepts", []))
        except ConfigError as error:
            problems += error.problems
        infos = {info.name: info for info in describe(cls)}
        parsed = {}
        for name, value in values.items():
            if name in infos:
                try:
                    parsed[name] = _typed(infos[name], value)
                except ValueError as error:
                    problems.append(FieldProblem(name, str(error)))
        if problems:
            raise ConfigError(problems)
        return cls(concepts=concepts, **parsed)

    def checked(self) -> Self:
        """Return these settings, or raise one ConfigError with all that is wrong with them."""
        problems = _out_of_range(self)
        problems += _others(problems, _cross_checks(self))
        if problems:
            raise ConfigError(problems)
        return self


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """One request for pictures."""

    prompt: str = setting("", "What the pictures show; a taught model wants its identifier in it.", "samples")
    negative_prompt: str = setting("", "What the pictures should not show.", "samples")
    num_images_per_prompt: int = setting(4, "How many pictures.", "samples", unit="pictures", low=1, high=64)
    num_inference_steps: int = setting(24, "Denoising steps.", "samples", unit="steps", low=1, high=1000)
    guidance_scale: float = setting(7.5, "How closely the prompt is followed.", "samples", low=0, high=50)
    height: int | None = setting(
        None, "Height; the model's native size when left out.", "samples", unit="px", low=16, high=2048
    )
    width: int | None = setting(
        None, "Width; the model's native size when left out.", "samples", unit="px", low=16, high=2048
    )
    seed: int | None = setting(
        None, "The same seed gives the same pictures; drawn and recorded when left out.", "samples",
        low=0, high=2**63 - 1,
    )  # fmt: skip
    sampler: Sampler = setting(
        "DDIM", "The way from noise to the picture; DPM++ needs fewer steps, Euler a varies more.", "samples"
    )

    def checked(self) -> Self:
        """Return this request, or raise one ConfigError with all that is wrong with it."""
        problems = _out_of_range(self)
        problems += _others(problems, _sizes_off_grid(self, ("height", "width")))
        if not problems and not self.prompt.strip():
            problems = [FieldProblem("prompt", "is empty: write what the pictures should show.")]
        if problems:
            raise ConfigError(problems)
        return self


# Presets -------------------------------------------------------------------------------------------------------------

# The seed notebook's launch cell. Two differences: prompts are padded, because pictures are generated from padded
# ones, and a model is saved every 200 steps, because the last step is seldom the best.
NOTEBOOK_RECIPE: dict[str, Any] = {
    "train_text_encoder": True,
    "with_prior_preservation": True,
    "prior_loss_weight": 1.0,
    "num_class_images": 50,
    "learning_rate": 1e-6,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "max_train_steps": 800,
    "resolution": 512,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "seed": 1337,
    "save_interval": 200,
    "pad_tokens": True,
}
UNET_ONLY_LEARNING_RATE = 2e-6

MEMORY_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "minimum": {"mixed_precision": "fp16", "use_8bit_adam": True, "gradient_checkpointing": True},
    "recommended": {"mixed_precision": "fp16", "use_8bit_adam": True},
    "high_speed": {"mixed_precision": "fp16", "use_8bit_adam": True, "train_batch_size": 2},
    "full_precision": {"mixed_precision": "no", "gradient_checkpointing": True},
}
PRESETS = tuple(MEMORY_CONFIGURATIONS)

STEP_RANGES: dict[Kind, tuple[int, int]] = {
    "person": (800, 1200), "pet": (800, 800), "object": (400, 600), "style": (400, 600),
}  # fmt: skip


def load_config(path: Path) -> TrainingConfig:
    """Read settings from a file that `to_json` filled; raises ConfigError when it holds none."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([FieldProblem("config", f"{path} cannot be read: {error}."[:300])]) from None
    return TrainingConfig.from_json(values)


def preset(name: str) -> dict[str, Any]:
    """Return the notebook's recipe under one of its memory configurations."""
    if name not in MEMORY_CONFIGURATIONS:
        raise ConfigError([FieldProblem("preset", f"{name!r} is not one of {', '.join(PRESETS)}.")])
    return NOTEBOOK_RECIPE | MEMORY_CONFIGURATIONS[name]


def recommended_num_steps(kind: Kind, num_photos: int) -> int:
    """Return the step count for SD 1.5: the low end of the kind's range at 3 photos, the high end from 8 on."""
    low, high = STEP_RANGES[kind]
    share = min(max((num_photos - 3) / 5, 0), 1)
    return round((low + share * (high - low)) / 50) * 50


def resolve(
    explicit: Mapping[str, Any], card_recipe: Mapping[str, Any] | None = None, preset_name: str | None = None
) -> TrainingConfig:
    """Merge by authority: what was asked for, then the base's card, then the preset, then the seed script's default."""
    values = (preset(preset_name) if preset_name else {}) | dict(card_recipe or {}) | dict(explicit)
    recipe_rate = preset_name and "learning_rate" not in {**(card_recipe or {}), **explicit}
    if recipe_rate and not values["train_text_encoder"]:
        values["learning_rate"] = UNET_ONLY_LEARNING_RATE
    if preset_name and not values.get("save_sample_prompt"):
        values["save_sample_prompt"] = "\n".join(concept.instance_prompt for concept in values.get("concepts", ()))
    if not values.get("train_text_encoder") and "text_encoder_lr" not in explicit:
        values.pop("text_encoder_lr", None)
    return TrainingConfig(**values)


# Concepts ------------------------------------------------------------------------------------------------------------


def read_concepts(entries: object) -> tuple[Concept, ...]:
    """Read the entries of a `concepts_list`; raises ConfigError with every mistake in every entry."""
    if not isinstance(entries, list):
        raise ConfigError([FieldProblem("concepts_list", "must be a list of objects.")])
    problems: list[FieldProblem] = []
    concepts = []
    names = [field.name for field in dataclasses.fields(Concept)]
    for number, entry in enumerate(entries, 1):
        where = f"concepts_list[{number}]"
        if not isinstance(entry, dict):
            problems.append(FieldProblem(where, "must be an object."))
            continue
        wrong = [f"unknown key {shortly(key)}" for key in entry if key not in names]
        wrong += [f"{key} is missing" for key in ("instance_prompt", "instance_data_dir") if not entry.get(key)]
        wrong += [f"{key} must be text" for key in names if not isinstance(entry.get(key), str | None)]
        if wrong:
            problems.append(FieldProblem(where, f"{'; '.join(wrong)}."))
        else:
            optional = {key: entry.get(key) or None for key in ("class_prompt", "class_data_dir")}
            concepts.append(Concept(entry["instance_prompt"], entry["instance_data_dir"], **optional))
    if problems:
        raise ConfigError(problems)
    return tuple(concepts)


def load_concepts_list(path: Path) -> tuple[Concept, ...]:
    """Read a `concepts_list.json` as the seed notebook writes it."""
    try:
        return read_concepts(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ConfigError([FieldProblem("concepts_list", f"{path} cannot be read: {error.strerror}.")]) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError([FieldProblem("concepts_list", f"{path} is not JSON: {error}.")]) from None


def dump_concepts_list(concepts: Iterable[Concept]) -> str:
    """Return the text of a `concepts_list.json` that the seed script reads too."""
    entries = [
        {name: value for name, value in dataclasses.asdict(concept).items() if value is not None}
        for concept in concepts
    ]
    return json.dumps(entries, indent=4) + "\n"


# Checks --------------------------------------------------------------------------------------------------------------


def _unknown_fields(config_type: type, values: Mapping[str, Any]) -> list[FieldProblem]:
    known = {field.name for field in dataclasses.fields(config_type)}
    return [
        FieldProblem(shortly(name).strip("'"), "is no setting of this version.") for name in values if name not in known
    ]


def _typed(info: FieldInfo, value: Any) -> Any:
    """Return the value as the field's type, or raise ValueError saying what it should be."""
    if value is None and info.optional:
        return None
    if info.type is bool and isinstance(value, bool):
        return value
    if info.type is str and isinstance(value, str):
        return value
    if info.type in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) > 2**64:  # beyond what a float holds, or what can be printed
            raise ValueError(f"is far too large or too small: it must be {info.range_text or 'a usual number'}.")
        if info.type is float:
            return float(value)
        if math.isfinite(value) and value == int(value):
            return int(value)
    wanted = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}[info.type]
    raise ValueError(f"is {shortly(value)}: it must be {wanted}.")


def _out_of_range(config: TrainingConfig | GenerationConfig) -> list[FieldProblem]:
    problems = []
    for info in describe(type(config)):
        value = getattr(config, info.name)
        try:
            value = _typed(info, value)
        except ValueError as error:
            problems.append(FieldProblem(info.name, str(error)))
            continue
        if value is None:
            continue
        if info.choices and value not in info.choices:
            problems.append(FieldProblem(info.name, f"is {shortly(value)}: it must be one of {info.range_text}."))
        elif isinstance(value, str):
            problems += text_problems(info.name, value, is_name=info.group in ("model", "saving"))
        elif not isinstance(value, bool) and not _within(value, info):
            problems.append(FieldProblem(info.name, f"is {float(value):g}: it must be {info.range_text}."))
    return problems


def _others(told: list[FieldProblem], found: list[FieldProblem]) -> list[FieldProblem]:
    """Return what was found wrong with fields of which nothing was told yet."""
    return [problem for problem in found if problem.field not in {known.field for known in told}]


def _sizes_off_grid(config: TrainingConfig | GenerationConfig, names: Iterable[str]) -> list[FieldProblem]:
    sizes = {name: getattr(config, name) for name in names}
    return [
        FieldProblem(name, f"is {shortly(size)}: it must be a multiple of 8.")
        for name, size in sizes.items()
        if isinstance(size, int) and size % 8
    ]


def _within(value: float, info: FieldInfo) -> bool:
    low = -math.inf if info.low is None else info.low
    high = math.inf if info.high is None else info.high
    return math.isfinite(value) and low <= value <= high


def _concept_problems(concept: Concept) -> list[FieldProblem]:
    problems = []
    for field in dataclasses.fields(Concept):
        text = getattr(concept, field.name)
        if text is not None:
            problems += text_problems(field.name, text, is_name=field.name.endswith("_dir"))
    if not concept.instance_prompt.strip():
        problems.append(FieldProblem("instance_prompt", "is empty: write the words that will name the subject."))
    if not is_folder(concept.instance_data_dir):
        problems.append(FieldProblem("instance_data_dir", f"{shortly(concept.instance_data_dir)} is no folder."))
    return problems


def _cross_checks(config: TrainingConfig) -> list[FieldProblem]:
    problems = []
    if isinstance(config.logging_dir, str):
        problems += run_path_problem("logging_dir", config.logging_dir)
    for name, slashes in (("revision", True), ("variant", False)):
        if isinstance(value := getattr(config, name), str):
            problems += plain_name_problem(name, value, slashes=slashes)
    if not config.concepts:
        problems.append(FieldProblem("instance_data_dir", "is missing: name the folder with the photos."))
    for concept in config.concepts:
        problems += _concept_problems(concept)
        if config.with_prior_preservation and not (concept.class_prompt or "").strip():
            message = f"is missing for {shortly(concept.instance_prompt)}: prior preservation needs it."
            problems.append(FieldProblem("class_prompt", message))
    problems += _sizes_off_grid(config, ("resolution",))
    if not config.train_text_encoder:
        problems += [
            FieldProblem(name, "only has a meaning with train_text_encoder.")
            for name in ("text_encoder_lr", "text_encoder_stop_step")
            if getattr(config, name) is not None
        ]
    return problems
