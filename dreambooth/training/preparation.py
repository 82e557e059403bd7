"""Preparation before the first step: loading the base, generating class images, encoding crops, tokenizing captions."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.config.counts import num_steps_of
from dreambooth.config.training import TrainingConfig
from dreambooth.data.class_images import ensure_class_images
from dreambooth.data.dataset import ConceptPhotos, load_concept
from dreambooth.data.decoded import forget_decoded
from dreambooth.data.focus import FOCUS_FILE
from dreambooth.data.photo_records import recorded_reader, write_reader
from dreambooth.data.photos import PHOTO_READER, num_photos_in
from dreambooth.device.precision import dtype_of
from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.events import PhaseProgress
from dreambooth.forecast.counts import counts_of_base
from dreambooth.forecast.disk import bytes_there, disk_need, refuse_short_disk
from dreambooth.models.base import Base
from dreambooth.models.half_precision import in_half
from dreambooth.models.manager import ModelManager, use_attention
from dreambooth.models.saved_step import ModelSource, load
from dreambooth.records.drive import refuse_full_drive
from dreambooth.records.workspace import RunFolder
from dreambooth.training.batches import BatchMaker, LatentPool
from dreambooth.training.captions import CaptionConditions, tokenize
from dreambooth.training.fixed_noise import EvaluationPictures, FixedNoiseEvaluation, evaluation_pictures
from dreambooth.training.materials import Materials, RunContext
from dreambooth.training.method import Method, method_of
from dreambooth.training.objective import zero_terminal_snr
from dreambooth.training.sharding import refuse_one_process
from dreambooth.training.subject_mask import find_subjects
from dreambooth.training.teacher import fill_teacher
from dreambooth.training.updates import refuse_several_processes

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def prepare(config: TrainingConfig, context: RunContext) -> Materials | None:
    """Return everything the loop reads, on the device; None if stopped.

    Of several processes the first generates the class images and the others wait for it.
    """
    from accelerate import PartialState

    assert config.seed is not None, "the run's records draw it"
    seed, manager, is_stopped = config.seed, context.manager, context.controls.stop.is_set
    process = PartialState(cpu=manager.device.type == "cpu")
    _refuse_number_of_processes(config, process.num_processes)
    base, method = _loaded_base(config, context), method_of(config)
    if not context.is_resumed:
        method.check(base, config)
    base_key = base.fingerprint_of("unet", *base.family.layout.text_encoders, "vae")
    if process.is_main_process and config.output_dir:
        _refuse_short_disks(config, base, Path(config.output_dir), context, process.num_processes)
    with process.main_process_first():
        class_folders = class_image_folders(config, base, context)
    if is_stopped():
        return None
    reader = _photo_reader(config, is_resumed=context.is_resumed, writes=process.is_main_process)
    concepts = _loaded_concepts(config, class_folders, reader, context.warn)
    pool = LatentPool(config, seed, concepts, base, manager.device, reader)
    evaluates = process.is_main_process or config.shard_weights  # a model that is shared computes in all or none
    pictures = _encoded_pictures(config, seed, concepts, pool, base, context, evaluates=evaluates)
    if is_stopped():
        return None
    captions = _captions(concepts)
    method.prepare(base, config)
    conditions = _placed_conditions(config, base, captions, pictures, context)
    alpha_bar = _noise_levels(config, base).to(manager.device)
    batches = BatchMaker(
        config, seed, pool, concepts, base.vae.config.scaling_factor, len(alpha_bar),
        process.process_index, process.num_processes,
    )  # fmt: skip
    planned_steps = num_steps_of(config, sum(len(one.instance) for one in concepts), process.num_processes)
    _query_base(config, method, batches, base, conditions, alpha_bar, planned_steps, context)
    if is_stopped():
        return None
    fixed_noise = None if pictures is None else _evaluation(config, method, seed, pictures, base, conditions, alpha_bar)
    if is_stopped():
        return None
    files = _photo_files(config, concepts)
    return Materials(
        base, batches, conditions, alpha_bar, seed, planned_steps, files, captions, base_key, method, fixed_noise
    )


def _refuse_number_of_processes(config: TrainingConfig, num_processes: int) -> None:
    if config.shard_weights:
        refuse_one_process(num_processes)
    if config.update_in_backward:
        refuse_several_processes(num_processes)


def _loaded_base(config: TrainingConfig, context: RunContext) -> Base:
    context.report(PhaseProgress("loading"))
    source = ModelSource(
        config.pretrained_model_name_or_path,
        vae=config.pretrained_vae_name_or_path,
        revision=config.revision,
        variant=config.variant,
        tokenizer=config.tokenizer_name,
    )
    # What a LoRA trains beside is in this format later; before that class images are made, on a CPU in fp32.
    is_read_in_half = _is_half(config) and (context.manager.device.type == "cuda" or not config.with_prior_preservation)
    dtype = dtype_of(config.mixed_precision) if is_read_in_half else None
    base = load(source, models_dir=context.workspace.models_dir, token=context.token, dtype=dtype)
    use_attention([base.unet, base.vae], config.attention, context.warn)
    return base


def _refuse_short_disks(
    config: TrainingConfig, base: Base, output_dir: Path, context: RunContext, num_processes: int
) -> None:
    """Raise TrainingError if the run's files do not fit on the disk, or its copies on Google Drive."""
    photos = num_photos_in(concept.instance_data_dir for concept in config.concepts)
    counts = counts_of_base(base)
    need = disk_need(config, counts, num_steps_of(config, photos, num_processes))
    refuse_short_disk(need, output_dir, is_resumed=context.is_resumed)
    drive_dir = context.workspace.drive_dir
    if drive_dir is not None:
        kept = RunFolder(drive_dir / "runs" / output_dir.name)
        missing_bytes = max(need.kept_bytes - bytes_there(kept, need), 0)
        refuse_full_drive(drive_dir, missing_bytes, is_resumed=context.is_resumed)


def _encoded_pictures(
    config: TrainingConfig,
    seed: int,
    concepts: Sequence[ConceptPhotos],
    pool: LatentPool,
    base: Base,
    context: RunContext,
    *,
    evaluates: bool,
) -> EvaluationPictures | None:
    """Fill the pool, and return the images for the evaluation at fixed noise: everything that needs the VAE."""
    manager, is_stopped = context.manager, context.controls.stop.is_set
    manager.place(base.vae)
    if not config.not_cache_latents:
        pool.fill(lambda done, total: context.report(PhaseProgress("latents", done, total)), is_stopped)
    pictures = None
    if config.gauge_interval and evaluates and not is_stopped():
        pictures = evaluation_pictures(config, seed, concepts, pool, base.vae.config.scaling_factor)
    manager.park(base.vae)
    forget_decoded()
    return pictures


def _captions(concepts: Sequence[ConceptPhotos]) -> list[tuple[str, str]]:
    """Return the caption of every image, preceded by the image's role."""
    return [
        (role, photo.caption)
        for one in concepts
        for role, photos in (("instance", one.instance), ("class", one.class_images))
        for photo in photos
    ]


def _placed_conditions(
    config: TrainingConfig,
    base: Base,
    captions: Sequence[tuple[str, str]],
    pictures: EvaluationPictures | None,
    context: RunContext,
) -> CaptionConditions:
    """Move what is trained to the device, and return the conditioning of each caption."""
    manager = context.manager
    for encoder in base.text_encoders():
        manager.place(encoder)
    trained = [caption for _, caption in captions] + [""] * (config.caption_dropout > 0)
    untrained = [*(pictures.drift_captions if pictures else ())]
    untrained += [concept.class_prompt or "" for concept in config.concepts] * (config.background_weight != 1)
    inputs = tokenize(base, trained, pad_tokens=config.pad_tokens, notice=context.warn, also=untrained)
    conditions = CaptionConditions(base, inputs, trained=config.train_text_encoder)
    if not config.train_text_encoder:
        for encoder in base.text_encoders():
            manager.park(encoder)
    manager.place(base.unet)
    if config.not_cache_latents:
        manager.place(base.vae)
    return conditions


def _noise_levels(config: TrainingConfig, base: Base) -> "Tensor":
    """Return alpha_bar_t for every timestep t; the base's config is updated for a changed schedule."""
    if config.zero_terminal_snr:
        base.noise_scheduler_config |= zero_terminal_schedule(base.noise_scheduler_config)
    return alphas_cumprod(base)


def _evaluation(
    config: TrainingConfig,
    method: Method,
    seed: int,
    pictures: EvaluationPictures,
    base: Base,
    conditions: CaptionConditions,
    alpha_bar: "Tensor",
) -> FixedNoiseEvaluation:
    kind = base.noise_scheduler_config.get("prediction_type", "epsilon")
    return FixedNoiseEvaluation(pictures, base, conditions, alpha_bar, kind, method.autocast_dtype(config), seed)


def _query_base(
    config: TrainingConfig,
    method: Method,
    batches: BatchMaker,
    base: Base,
    conditions: CaptionConditions,
    alpha_bar: "Tensor",
    planned_steps: int,
    context: RunContext,
) -> None:
    """Compute the base's targets for class images, and the subject masks, while it is still untrained."""
    is_stopped = context.controls.stop.is_set
    if config.teacher_prior:
        fill_teacher(
            batches, base, conditions, alpha_bar, planned_steps, method.autocast_dtype(config),
            lambda done, total: context.report(PhaseProgress("latents", done, total)), is_stopped,
        )  # fmt: skip
    if config.background_weight != 1:
        find_subjects(batches, base, conditions, alpha_bar, is_stopped)


def _photo_files(config: TrainingConfig, concepts: Sequence[ConceptPhotos]) -> list[Path]:
    """Return the files that a resumed run must share."""
    files = [photo.path for pictures in concepts for photo in (*pictures.instance, *pictures.class_images)]
    # Another square of a photo is another photo to the run, and so is another mask.
    files += [file for one in config.concepts if (file := Path(one.instance_data_dir) / FOCUS_FILE).is_file()]
    return files + [photo.mask for one in concepts for photo in one.instance if photo.mask is not None]


def _loaded_concepts(
    config: TrainingConfig, class_folders: Sequence[str | None], reader: int, notice: Callable[[str], None]
) -> list[ConceptPhotos]:
    return [
        load_concept(
            dataclasses.replace(concept, class_data_dir=class_folder),
            read_prompts_from_txts=config.read_prompts_from_txts,
            num_class_images=config.num_class_images if config.with_prior_preservation else 0,
            report=notice,
            reader=reader,
            with_masks=config.background_weight != 1,
        )
        for concept, class_folder in zip(config.concepts, class_folders, strict=True)
    ]


def _photo_reader(config: TrainingConfig, *, is_resumed: bool, writes: bool) -> int:
    """Return the photo reader with which the run continues; for a new run it is recorded."""
    if config.output_dir is None:
        return PHOTO_READER
    file = RunFolder(Path(config.output_dir)).photo_reader_path
    if is_resumed:
        return recorded_reader(file)
    if writes:
        write_reader(file)
    return PHOTO_READER


def zero_terminal_schedule(scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes to a base's noise schedule that make its last level pure noise, for samplers to read too.

    Raises ConfigError for a base that predicts eps: for pure noise that is the noise itself, and nothing is learned
    (Lin et al. 2023, arXiv 2305.08891, section 3.1). Samplers have to start at that level (section 3.3).
    """
    if scheduler_config.get("prediction_type", "epsilon") != "v_prediction":
        message = "is for models that predict v, such as SD 2.1 at 768 px; this one predicts the noise."
        raise ConfigError([FieldProblem("zero_terminal_snr", message)])
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def alphas_cumprod(base: Base) -> "Tensor":
    """Return alpha_bar_t for every timestep t of the base's noise schedule, shape (timesteps,)."""
    from diffusers import DDPMScheduler

    config = dict(base.noise_scheduler_config)
    is_zero_at_last = config.pop("rescale_betas_zero_snr", False)
    alpha_bar: Tensor = DDPMScheduler.from_config(config).alphas_cumprod
    return zero_terminal_snr(alpha_bar) if is_zero_at_last else alpha_bar


def class_image_folders(config: TrainingConfig, base: Base, context: RunContext) -> list[str | None]:
    """Return the folder of each concept's class images, complete; as in the settings if none are used."""
    if not config.with_prior_preservation:
        return [concept.class_data_dir for concept in config.concepts]
    workspace, manager = context.workspace, context.manager
    if config.class_model_name_or_path is not None:
        source = ModelSource(config.class_model_name_or_path, vae=config.pretrained_vae_name_or_path)
        dtype = _class_images_dtype(config, manager) if manager.device.type == "cuda" else None
        base = load(source, models_dir=workspace.models_dir, token=context.token, dtype=dtype)
    base_key = base.fingerprint
    vae_key = base.fingerprint_of("vae")

    # The cache folder identifies the base that made them; its name may be a path of this machine.
    @functools.cache
    def placed() -> Base:
        if manager.device.type != "cuda":
            for part in base.modules().values():
                manager.place(part)
            return dataclasses.replace(base, name="")
        made = dataclasses.replace(_for_class_images(config, base, manager), name="")
        return dataclasses.replace(made, bring=functools.partial(manager.only, made))

    def report(before: int, done: int, _: int) -> None:
        total = len(config.concepts) * config.num_class_images
        context.report(PhaseProgress("class images", before + done, total))

    folders = []
    for place, concept in enumerate(config.concepts):
        files = ensure_class_images(
            concept,
            base_factory=placed,
            cache_dir=workspace.class_images_dir,
            base_key=base_key,
            vae_key=vae_key,
            num_class_images=config.num_class_images,
            resolution_px=config.resolution,
            num_inference_steps=config.save_infer_steps,
            seed=config.seed or 0,
            guidance_scale=config.class_guidance_scale,
            batch_size=config.sample_batch_size,
            keep_latents=config.keep_class_latents,
            report=functools.partial(report, place * config.num_class_images),
            should_stop=context.controls.stop.is_set,
            notice=context.warn,
        )
        folders.append(concept.class_data_dir or (str(files[0].parent) if files else None))
    if config.class_model_name_or_path is not None or manager.device.type == "cuda":
        for part in base.modules().values():
            manager.park(part)
    return folders


def _for_class_images(config: TrainingConfig, base: Base, manager: ModelManager) -> Base:
    """Return the base in the run's half precision, or in generation's; copied if it trains in fp32."""
    dtype = _class_images_dtype(config, manager)
    if config.class_model_name_or_path is not None:
        return in_half(base, dtype, kept=())
    return in_half(base, dtype, kept=("vae",) if _is_half(config) else base.family.layout.part_names)


def _is_half(config: TrainingConfig) -> bool:
    """Return whether the weights of the base are in half precision during the run."""
    return config.has_frozen_base and config.mixed_precision != "no"


def _class_images_dtype(config: TrainingConfig, manager: ModelManager) -> "torch.dtype":
    return dtype_of("bf16") if config.mixed_precision == "bf16" else manager.inference_dtype
