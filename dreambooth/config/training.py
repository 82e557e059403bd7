"""The settings of a training: one typed object, from which the form, the command line and the README are generated.

A field carries its range, unit and help sentence (`setting`); `describe` returns them. Names and defaults are those of
the well-known `train_dreambooth.py` where it has them, because users know those.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from dreambooth.config.checks import cross_checks
from dreambooth.config.concepts import Concept, read_concepts
from dreambooth.config.fields import describe, others, out_of_range, parse_numbers, setting, typed, unknown_fields
from dreambooth.config.limits import expand_paths
from dreambooth.errors import ConfigError, FieldProblem, TextFileError
from dreambooth.formats.lora_keys import LoraTargets
from dreambooth.formats.text_files import read_text

# Each may be a local folder.
PATHS = (
    "pretrained_model_name_or_path", "pretrained_vae_name_or_path", "tokenizer_name", "initial_lora", "output_dir",
)  # fmt: skip
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"

MethodName = Literal["full", "lora"]
Kind = Literal["person", "pet", "object", "style"]
Precision = Literal["no", "fp16", "bf16"]
SavePrecision = Literal["fp16", "fp32", "bf16"]
WeightPrecision = Literal["fp32", "bf16"]
Attention = Literal["sdpa", "xformers"]
Schedule = Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
# The prerequisites of settings.
WITH_PRIOR, WITH_TEXT_ENCODER = ("with_prior_preservation",), ("train_text_encoder",)
WITH_SAMPLES = ("save_sample_prompt",)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that determines a run; the same values on the same machine give the same run."""

    concepts: tuple[Concept, ...] = ()

    pretrained_model_name_or_path: str = setting(
        SD15, "Model to start from: a Hub id, a diffusers folder, a .safetensors or .ckpt file, or `starter`.",
        "model", in_identity=False,
    )  # fmt: skip
    pretrained_vae_name_or_path: str | None = setting(
        None, "Replacement VAE for training, samples and the saved model.", "model", in_identity=False
    )
    revision: str | None = setting(
        None, "Branch, tag or commit of the base model on the Hub.", "model", in_identity=False
    )
    variant: str | None = setting(
        None, "File variant of the base model on the Hub, such as fp16.", "model", in_identity=False
    )
    tokenizer_name: str | None = setting(
        None, "Replacement for the base model's tokenizer.", "model", in_identity=False
    )
    class_model_name_or_path: str | None = setting(
        None, "Model that generates class images; default: the base model, or for a trained one its own base.",
        "model", in_identity=False, only_with=WITH_PRIOR,
    )  # fmt: skip
    output_dir: str | None = setting(
        None, "Folder of the run; default: a new one in the data folder.", "model", in_identity=False
    )
    method: MethodName = setting(
        "full", "Train the whole model (full), or a LoRA: a small file for any model like the base.",
        "model",
    )  # fmt: skip
    initial_lora: str | None = setting(
        None, "A LoRA file or saved LoRA step to continue from; the optimizer starts from scratch.", "model",
        in_identity=False, method="lora",
    )  # fmt: skip
    seed: int | None = setting(None, "Random seed; drawn and recorded when left out.", "model", low=0, high=2**63 - 1)

    resolution: int = setting(
        512, "Side of the square crops; the base model's native size works best.", "photos",
        unit="px", low=16, high=2048,
    )  # fmt: skip
    center_crop: bool = setting(False, "Crop at the center instead of at random along the longer side.", "photos")
    buckets: bool = setting(False, "Keep each photo near its own aspect ratio instead of cropping squares.", "photos")
    hflip: bool = setting(False, "Flip half of the crops; not for text or asymmetric faces.", "photos")
    num_crop_variants: int = setting(
        8, "Prepared crops and flips per photo; each step uses one of them.", "photos",
        unit="crops per photo", low=1, high=64,
    )  # fmt: skip
    read_prompts_from_txts: bool = setting(
        False, "Read each photo's caption from the .txt file of the same name instead of the instance prompt.", "photos"
    )
    pad_tokens: bool = setting(False, "Pad prompts to 77 tokens, as in generation.", "photos")

    with_prior_preservation: bool = setting(
        False, "Also train on images of the class, so that the model does not forget it.", "prior"
    )
    prior_loss_weight: float = setting(
        1.0, "Weight of the class images relative to the photos.", "prior", low=0, high=100, only_with=WITH_PRIOR
    )
    num_class_images: int = setting(
        100, "Class images per concept; missing ones are generated.", "prior", unit="pictures", low=1, high=10_000,
        only_with=WITH_PRIOR,
    )  # fmt: skip
    class_guidance_scale: float = setting(
        7.5, "Guidance scale of generated class images; high values give harsh colors.", "prior", low=0,
        high=50, only_with=WITH_PRIOR,
    )  # fmt: skip
    teacher_prior: bool = setting(
        False, "Match the base model's own predictions on class images instead of the noise; computed once.", "prior",
        only_with=WITH_PRIOR,
    )  # fmt: skip
    keep_class_latents: bool = setting(
        False, "Train on the latents of generated class images, without another pass through the VAE.", "prior",
        only_with=WITH_PRIOR,
    )  # fmt: skip
    sample_batch_size: int = setting(
        4, "Class images generated at a time.", "prior", unit="pictures", low=1, high=64, only_with=WITH_PRIOR
    )

    lora_rank: int = setting(
        16, "Rank of the LoRA: higher learns more and makes larger files.", "training", low=1, high=320,
        method="lora",
    )  # fmt: skip
    lora_targets: LoraTargets = setting(
        "linear", "Layers the LoRA changes: attention, all linear layers, or convolutions too.",
        "training", method="lora",
    )  # fmt: skip
    train_text_encoder: bool = setting(False, "Better likeness, above all of people; more memory.", "training")
    text_encoder_lr: float | None = setting(
        None, "Learning rate of the text encoder; default: that of the UNet.", "training", low=1e-9, high=1.0,
        only_with=WITH_TEXT_ENCODER,
    )  # fmt: skip
    text_encoder_stop_step: int | None = setting(
        None, "Step at which the text encoder stops training.", "training", unit="steps", low=1, high=10**6,
        only_with=WITH_TEXT_ENCODER,
    )  # fmt: skip
    train_batch_size: int = setting(
        4, "Photos per micro-batch; prior preservation adds as many class images.", "training",
        unit="photos", low=1, high=64,
    )  # fmt: skip
    snr_gamma: float | None = setting(
        None, "Min-SNR weighting: gives less weight to nearly noiseless timesteps; often 5.",
        "training", low=0.01, high=1000,
    )  # fmt: skip
    stratified_timesteps: bool = setting(
        False, "Spread each photo's timesteps evenly instead of drawing them independently.", "training"
    )
    caption_dropout: float = setting(
        0.0, "Share of training images whose caption is dropped.", "training", low=0, high=1
    )
    noise_offset: float = setting(
        0.0, "Offset noise, for very dark and very bright pictures; often 0.05.", "training",
        low=0, high=1,
    )  # fmt: skip
    background_weight: float = setting(
        1.0, "Weight of a photo's background relative to the subject, which masks show or the base model locates.",
        "training", low=0, high=1,
    )  # fmt: skip
    zero_terminal_snr: bool = setting(
        False, "Zero terminal SNR: the last timestep is pure noise; for v-prediction models such as SD 2.1.", "training"
    )
    stop_when_good: bool = setting(
        False, "Stop when two saves in a row are no better than an earlier one; needs sample prompts.", "training",
        only_with=WITH_SAMPLES,
    )  # fmt: skip
    num_train_epochs: int = setting(
        1, "Passes over the photos or class images, whichever are more; max_train_steps overrides it.", "training",
        unit="passes", low=1, high=100_000,
    )  # fmt: skip
    max_train_steps: int | None = setting(
        None, "Optimizer updates in all.", "training", unit="steps", low=1, high=1_000_000, in_identity=False
    )
    gradient_accumulation_steps: int = setting(
        1, "Micro-batches accumulated per update; a step is one update.", "training",
        unit="micro-batches", low=1, high=256,
    )  # fmt: skip

    learning_rate: float = setting(5e-6, "Learning rate of the UNet.", "optimizer", low=1e-9, high=1.0)
    scale_lr: bool = setting(
        False, "Multiply the learning rate by accumulation, batch size and number of processes.", "optimizer"
    )
    lr_scheduler: Schedule = setting("constant", "How the learning rate changes over the run.", "optimizer")
    lr_warmup_steps: int = setting(
        500, "Steps over which the learning rate rises from zero (schedules with warm-up).", "optimizer",
        unit="steps", low=0, high=1_000_000,
    )  # fmt: skip
    use_8bit_adam: bool = setting(False, "8-bit AdamW (bitsandbytes): less memory.", "optimizer", method="full")
    adam_beta1: float = setting(0.9, "Decay of AdamW's first moment.", "optimizer", low=0, high=0.9999)
    adam_beta2: float = setting(0.999, "Decay of AdamW's second moment.", "optimizer", low=0, high=0.99999)
    adam_weight_decay: float = setting(1e-2, "AdamW's decoupled weight decay.", "optimizer", low=0, high=10)
    adam_epsilon: float = setting(1e-8, "AdamW's epsilon, against division by zero.", "optimizer", low=0, high=1)
    max_grad_norm: float = setting(1.0, "Clip gradients to this global norm; 0: off.", "optimizer", low=0, high=1e6)
    max_tensor_grad_norm: float | None = setting(
        None, "Clip each tensor's gradient to this norm; needs update_in_backward.",
        "optimizer", low=0, high=1e6, only_with=("update_in_backward",), method="full",
    )  # fmt: skip
    use_ema: bool = setting(False, "Save an exponential moving average (EMA) of the weights.", "optimizer")
    ema_decay: float = setting(
        0.999,
        "Decay of the EMA: higher follows more slowly.",
        "optimizer",
        low=0.5,
        high=0.99999,
        only_with=("use_ema",),
    )

    mixed_precision: Precision = setting("no", "Number format of the computation.", "memory")
    weight_precision: WeightPrecision = setting(
        "fp32", "Number format of the trained weights; bf16 halves their memory and uses stochastic rounding.",
        "memory", method="full",
    )  # fmt: skip
    update_in_backward: bool = setting(
        False, "Update each weight during the backward pass and free its gradient: gigabytes less, no accumulation.",
        "memory", method="full",
    )  # fmt: skip
    capture_step: bool = setting(
        False, "Record the step as a CUDA graph and replay it: faster on fast GPUs, a little more memory.",
        "memory",
    )  # fmt: skip
    compile_unet: bool = setting(
        False,
        "Compile the UNet with torch.compile: takes minutes at the start, then runs faster on fast GPUs.",
        "memory",
    )
    gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass: less memory, more time.", "memory"
    )
    shard_weights: bool = setting(
        False, "Shard weights, gradients and optimizer state across processes (FSDP): less memory in each.",
        "memory", method="full",
    )  # fmt: skip
    attention: Attention = setting("sdpa", "Attention implementation for training and samples.", "memory")
    not_cache_latents: bool = setting(
        False, "Encode crops during training instead of beforehand; keeps the VAE in memory.", "memory"
    )

    save_sample_prompt: str | None = setting(
        None, "Prompt for the sample pictures made at every save, with the same seeds; one prompt per line.", "samples"
    )
    save_sample_negative_prompt: str | None = setting(
        None, "Negative prompt of the sample pictures.", "samples", only_with=WITH_SAMPLES
    )
    n_save_sample: int = setting(
        4, "Sample pictures per save.", "samples", unit="pictures", low=1, high=64, only_with=WITH_SAMPLES
    )
    save_guidance_scale: float = setting(
        7.5, "Guidance scale of the sample pictures.", "samples", low=0, high=50, only_with=WITH_SAMPLES
    )
    save_infer_steps: int = setting(
        20, "Denoising steps of samples and class images.", "samples", unit="steps", low=1, high=1000,
        only_with=(*WITH_SAMPLES, *WITH_PRIOR),
    )  # fmt: skip

    num_probe_images: int = setting(
        4, "Pictures of the subject, and as many of its class, that score each save; 0: none.",
        "samples", unit="pictures", low=0, high=64, only_with=WITH_SAMPLES,
    )  # fmt: skip

    save_interval: int = setting(
        10_000, "Steps between saved models; the last step is always saved.", "saving", unit="steps", low=1, high=10**6
    )
    save_min_steps: int = setting(0, "No saved models before this step.", "saving", unit="steps", low=0, high=10**6)
    save_precision: SavePrecision = setting("fp16", "Number format of the saved models.", "saving", in_identity=False)
    save_total_limit: int | None = setting(
        None, "Newest saved models to keep; default: all. Samples and settings of the others stay.", "saving",
        unit="models", low=1, high=1000, in_identity=False,
    )  # fmt: skip
    checkpointing_steps: int | None = setting(
        None, "Steps between exact states to resume from; default: every 1 to 10 minutes, by size; 0: only at saves.",
        "saving", unit="steps", low=0, high=10**6, in_identity=False,
    )  # fmt: skip
    checkpoints_total_limit: int | None = setting(
        None, "Newest exact states to keep; default: two if they fit, else one.", "saving",
        low=1, high=100, in_identity=False,
    )  # fmt: skip
    drop_final_state: bool = setting(
        False, "Delete the exact state of a finished run; otherwise it is kept if it fits, for training more steps.",
        "saving", in_identity=False,
    )  # fmt: skip
    gauge_interval: int = setting(
        100, "Steps between evaluations at fixed noise, which also happen at saves; 0: none.", "saving",
        unit="steps", low=0, high=10**6, in_identity=False,
    )  # fmt: skip
    log_interval: int = setting(
        10, "Steps between log lines.", "saving", unit="steps", low=1, high=10_000, in_identity=False
    )
    logging_dir: str = setting(
        "logs", "TensorBoard's folder under `0/`, if TensorBoard is installed.", "saving", in_identity=False
    )

    def __post_init__(self) -> None:
        parse_numbers(self)
        expand_paths(self, PATHS)
        given: object = self.concepts
        if isinstance(given, list):
            object.__setattr__(self, "concepts", tuple(given))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` restores the same settings."""
        return dataclasses.asdict(self) | {"concepts": [dataclasses.asdict(concept) for concept in self.concepts]}

    @property
    def sample_prompts(self) -> list[str]:
        """Return the prompts of the sample images, one for each line that is not blank."""
        return [line for line in (self.save_sample_prompt or "").splitlines() if line.strip()]

    @property
    def num_sample_pictures(self) -> int:
        """Return how many sample images each save makes."""
        return len(self.sample_prompts) * self.n_save_sample

    @property
    def has_frozen_base(self) -> bool:
        """Return whether the base's weights are frozen and only additional weights are trained and saved."""
        return self.method == "lora"

    @property
    def base_precision(self) -> str:
        """Return the number format of the base's UNet and text encoders: fp32, fp16 or bf16; the VAE is in fp32."""
        in_half = self.has_frozen_base and self.mixed_precision != "no"
        return self.mixed_precision if in_half else self.weight_precision

    @property
    def parks_unet(self) -> bool:
        """Return whether the UNet leaves the GPU while images do not need it: it is frozen, and no step is recorded."""
        return self.has_frozen_base and not (self.capture_step or self.compile_unet)

    def learns(self, part: str) -> bool:
        """Return whether a part of the base is trained: text encoders only on request."""
        return part == "unet" or self.train_text_encoder

    @property
    def has_8bit_moments(self) -> bool:
        """Return whether the optimizer's moments have 8 bits; a LoRA's never have, because there are few."""
        return self.use_8bit_adam and self.method == "full"

    @property
    def num_probe_pictures(self) -> int:
        """Return how many probe images score each save; none in a run without samples."""
        per_concept = 2 * self.num_probe_images + 2 * -(-self.num_probe_images // 4)
        return len(self.concepts) * per_concept if self.sample_prompts else 0

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share with its first part, as plain JSON values by name."""
        prompts = [[concept.instance_prompt, concept.class_prompt] for concept in self.concepts]
        own = {info.name: getattr(self, info.name) for info in describe(type(self)) if info.in_identity}
        return own | {"concepts": prompts}

    def departures(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults; settings added by later versions do not change it."""
        defaults = type(self)().to_json()
        return {name: value for name, value in self.to_json().items() if value != defaults[name]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read settings written by `to_json`; raises ConfigError naming every unknown or mistyped field."""
        if not isinstance(values, Mapping):
            raise ConfigError([FieldProblem("settings", "must be a JSON object.")])
        problems = unknown_fields(cls, values)
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
                    parsed[name] = typed(infos[name], value)
                except ValueError as error:
                    problems.append(FieldProblem(name, str(error)))
        if problems:
            raise ConfigError(problems)
        return cls(concepts=concepts, **parsed)

    def in_range(self) -> Self:
        """Return these settings, or raise one ConfigError with all values that are invalid by themselves."""
        if problems := out_of_range(self):
            raise ConfigError(problems)
        return self

    def checked(self) -> Self:
        """Return these settings, or raise one ConfigError with everything that is wrong with them."""
        problems = out_of_range(self)
        problems += others(problems, cross_checks(self))
        if problems:
            raise ConfigError(problems)
        return self


def load_config(path: Path) -> TrainingConfig:
    """Read settings from a file written from `to_json`; raises ConfigError if it holds none."""
    try:
        values = json.loads(read_text(path))
    except (TextFileError, ValueError, RecursionError) as error:
        raise ConfigError([FieldProblem("config", f"{path} cannot be read: {error}"[:300])]) from None
    return TrainingConfig.from_json(values)
