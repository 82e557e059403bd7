"""Checks of settings against each other; `fields` checks the type and range of each by itself."""

from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.config.concepts import class_folder_problems, concept_problems
from dreambooth.config.limits import (
    as_written,
    is_folder,
    place_problem,
    plain_name_problem,
    run_path_problem,
    sizes_off_grid,
)
from dreambooth.errors import FieldProblem
from dreambooth.formats.layout import lora_at
from dreambooth.formats.photo_files import counted_masks

if TYPE_CHECKING:
    from dreambooth.config.training import TrainingConfig

# How many saves without improvement end a run that stops when it is good enough.
PATIENCE = 2


def cross_checks(config: "TrainingConfig") -> list[FieldProblem]:
    """Return which training settings contradict each other, or name something that cannot be used."""
    problems = []
    if isinstance(config.logging_dir, str):
        problems += run_path_problem("logging_dir", config.logging_dir)
    for name, slashes in (("revision", True), ("variant", False)):
        if isinstance(value := getattr(config, name), str):
            problems += plain_name_problem(name, value, slashes=slashes)
    if not config.concepts:
        problems.append(FieldProblem("instance_data_dir", "is missing: give the folder with the photos."))
    for concept in config.concepts:
        problems += concept_problems(concept)
        if config.with_prior_preservation and not (concept.class_prompt or "").strip():
            message = f"is missing for {as_written(concept.instance_prompt)}: prior preservation needs it."
            problems.append(FieldProblem("class_prompt", message))
    if config.with_prior_preservation:
        problems += class_folder_problems(config.concepts)
    if isinstance(config.output_dir, str) and (problem := place_problem(Path(config.output_dir))):
        problems.append(FieldProblem("output_dir", problem))
    problems += sizes_off_grid({"resolution": config.resolution})
    problems += _bucket_problems(config)
    problems += update_problems(config)
    problems += _recipe_problems(config)
    problems += _stopping_problems(config)
    if not config.train_text_encoder:
        problems += [
            FieldProblem(name, "has no effect without train_text_encoder.")
            for name in ("text_encoder_lr", "text_encoder_stop_step")
            if getattr(config, name) is not None
        ]
    return problems


def _bucket_problems(config: "TrainingConfig") -> list[FieldProblem]:
    """Return the settings that cannot be combined with batches of several sizes."""
    if config.buckets is not True:
        return []
    wrong = {
        "resolution": (isinstance(config.resolution, int) and config.resolution % 64 != 0, "be a multiple of 64"),
        "capture_step": (config.capture_step is True, "be off: a recorded step has one size of photos"),
        "compile_unet": (config.compile_unet is True, "be off: it compiles for one size of photos"),
        "background_weight": (
            _finds_subjects(config),
            "be 1, or every photo needs a mask: the subject is only found in square crops",
        ),
    }
    return [
        FieldProblem(name, f"must {wanted} (buckets is on).") for name, (is_wrong, wanted) in wrong.items() if is_wrong
    ]


def _recipe_problems(config: "TrainingConfig") -> list[FieldProblem]:
    """Return the options whose prerequisites are missing."""
    problems = [
        FieldProblem(name, "has no effect without with_prior_preservation.")
        for name in ("teacher_prior", "keep_class_latents")
        if getattr(config, name) and not config.with_prior_preservation
    ]
    if config.teacher_prior and config.not_cache_latents:
        problems.append(FieldProblem("teacher_prior", "needs cached latents: leave out not_cache_latents."))
    if config.teacher_prior and config.zero_terminal_snr:
        message = "cannot be combined with zero_terminal_snr: the base was not trained on those noise levels."
        problems.append(FieldProblem("teacher_prior", message))
    if _finds_subjects(config):
        if config.not_cache_latents:
            message = "needs cached latents (leave out not_cache_latents) or a mask for every photo."
            problems.append(FieldProblem("background_weight", message))
        if not all((concept.class_prompt or "").strip() for concept in config.concepts):
            message = "needs a class_prompt for every concept: its last word tells the base what to find."
            problems.append(FieldProblem("background_weight", message))
    return problems


def _finds_subjects(config: "TrainingConfig") -> bool:
    """Return whether the base has to find the subject in any photo, because no mask says where it is."""
    if config.background_weight == 1:
        return False
    folders = [concept.instance_data_dir for concept in config.concepts]
    masked, unmasked = counted_masks(Path(folder) for folder in folders if is_folder(folder))
    return unmasked > 0 or masked == 0


def _stopping_problems(config: "TrainingConfig") -> list[FieldProblem]:
    """Return what is missing in a run that should stop when it is good enough."""
    if config.stop_when_good is not True:
        return []
    problems = []
    if not (config.save_sample_prompt and config.num_probe_images):
        message = "compares scores of the saves: it needs save_sample_prompt and num_probe_images."
        problems.append(FieldProblem("stop_when_good", message))
    if isinstance(config.save_total_limit, int) and config.save_total_limit <= PATIENCE:
        message = (
            f"must be more than {PATIENCE} with stop_when_good: the best step is {PATIENCE} saves back when it stops."
        )
        problems.append(FieldProblem("save_total_limit", message))
    return problems


def update_problems(config: "TrainingConfig") -> list[FieldProblem]:
    """Return the contradictions between settings of the weight updates."""
    problems = []
    if config.update_in_backward is True:
        excluded = {
            "gradient_accumulation_steps": (config.gradient_accumulation_steps != 1, "be 1"),
            "max_grad_norm": (config.max_grad_norm != 0, "be 0 (max_tensor_grad_norm clips each tensor by itself)"),
            "mixed_precision": (config.mixed_precision == "fp16", "be bf16 or no, which need no loss scaling"),
            "capture_step": (config.capture_step, "be off"),
        }
        reason = "update_in_backward sees one gradient at a time"
        problems += [
            FieldProblem(name, f"must {wanted}: {reason}.") for name, (wrong, wanted) in excluded.items() if wrong
        ]
    elif config.max_tensor_grad_norm is not None:
        problems.append(FieldProblem("max_tensor_grad_norm", "has no effect without update_in_backward."))
    if config.weight_precision == "bf16":
        needed = {
            "update_in_backward": (not config.update_in_backward, "must be on: only it rounds updates at random."),
            "mixed_precision": (config.mixed_precision != "bf16", "must be bf16, as the weights are."),
            "use_ema": (config.use_ema, "must be off: an average moves by less than bf16 can hold."),
        }
        problems += [
            FieldProblem(name, f"{wanted[:-1]} (weight_precision is bf16).")
            for name, (wrong, wanted) in needed.items()
            if wrong
        ]
    if config.capture_step is True and (config.gradient_accumulation_steps != 1 or config.gradient_checkpointing):
        problems.append(
            FieldProblem(
                "capture_step", "cannot be combined with gradient_checkpointing or gradient_accumulation_steps."
            )
        )
    return problems + _sharding_problems(config) + _lora_problems(config)


def _sharding_problems(config: "TrainingConfig") -> list[FieldProblem]:
    """Return the settings that need whole weights, in a run whose processes share them."""
    if config.shard_weights is not True:
        return []
    names = ("use_8bit_adam", "use_ema", "update_in_backward", "capture_step", "compile_unet")
    message = "must be off: it needs whole weights (shard_weights is on)."
    problems = [FieldProblem(name, message) for name in names if getattr(config, name) is True]
    if config.mixed_precision == "fp16":
        message = "must be bf16 or no, which need no loss scaling (shard_weights is on)."
        problems.append(FieldProblem("mixed_precision", message))
    return problems


def _lora_problems(config: "TrainingConfig") -> list[FieldProblem]:
    """Return the settings that cannot be combined with a LoRA: each saves memory that only full fine-tuning takes."""
    if config.method != "lora":
        return []
    begun, lost = config.initial_lora, []
    if begun is not None and lora_at(Path(begun)) is None:
        message = "names neither a LoRA file nor a saved step of a LoRA run: check the path."
        lost.append(FieldProblem("initial_lora", message))
    wrong = {
        "update_in_backward": (config.update_in_backward is True, "off: a LoRA's gradients take little memory"),
        "weight_precision": (config.weight_precision != "fp32", "fp32: a LoRA's own weights take little memory"),
        "shard_weights": (config.shard_weights is True, "off: the base of a LoRA is not shared among processes"),
    }
    return lost + [
        FieldProblem(name, f"must be {wanted} (method is lora).")
        for name, (is_wrong, wanted) in wrong.items()
        if is_wrong
    ]
