"""Before the first step: the base loaded, class pictures made, crops encoded, captions tokenized."""

import dataclasses
from collections.abc import Callable, Mapping
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
from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.events import Controls, Notice, PhaseProgress
from dreambooth.forecast.counts import counts_of_models
from dreambooth.forecast.disk import bytes_there, disk_need, refuse_short_disk
from dreambooth.models.base import Base, load_base, weights_fingerprint
from dreambooth.models.manager import ModelManager, use_attention
from dreambooth.records.drive import refuse_full_drive
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.training.batches import BatchMaker, LatentPool
from dreambooth.training.captions import CaptionConditions, tokenize
from dreambooth.training.gauges import Gauges, gauge_pictures
from dreambooth.training.materials import Materials, Report
from dreambooth.training.objective import zero_terminal_snr
from dreambooth.training.sharding import refuse_one_process
from dreambooth.training.subject_mask import find_subjects
from dreambooth.training.teacher import fill_teacher
from dreambooth.training.updates import refuse_several_processes

if TYPE_CHECKING:
    from torch import Tensor


def prepare(
    config: TrainingConfig,
    *,
    workspace: Workspace,
    manager: ModelManager,
    token: str | None,
    report: Report,
    controls: Controls,
    is_resumed: bool = False,
) -> Materials | None:
    """Return everything the loop reads, on the device; None when stopped on the way.

    Of several processes the first makes the class pictures and the others wait for it.
    """
    from accelerate import PartialState

    assert config.seed is not None, "the run's records draw it"
    seed = config.seed
    process = PartialState(cpu=manager.device.type == "cpu")
    if config.shard_weights:
        refuse_one_process(process.num_processes)
    if config.update_in_backward:
        refuse_several_processes(process.num_processes)

    def notice(text: str) -> None:
        report(Notice(text, "warning"))

    report(PhaseProgress("loading"))
    base = load_base(
        config.pretrained_model_name_or_path,
        vae=config.pretrained_vae_name_or_path,
        revision=config.revision,
        variant=config.variant,
        tokenizer=config.tokenizer_name,
        token=token,
        models_dir=workspace.models_dir,
    )
    use_attention([base.unet, base.vae], config.attention, notice)
    base_key = weights_fingerprint(base.unet, base.text_encoder, base.vae)

    if process.is_main_process and config.output_dir:
        photos = num_photos_in(concept.instance_data_dir for concept in config.concepts)
        counts = counts_of_models(base.unet, base.text_encoder, base.vae)
        need = disk_need(config, counts, num_steps_of(config, photos, process.num_processes))
        refuse_short_disk(need, Path(config.output_dir), is_resumed=is_resumed)
        if workspace.drive_dir is not None:
            kept = RunFolder(workspace.drive_dir / "runs" / Path(config.output_dir).name)
            missing_bytes = max(need.kept_bytes - bytes_there(kept, need), 0)
            refuse_full_drive(workspace.drive_dir, missing_bytes, is_resumed=is_resumed)
    with process.main_process_first():
        config = with_class_images(
            config, base, workspace=workspace, manager=manager, report=report, controls=controls, token=token
        )
    if controls.stop.is_set():
        return None
    reader = _photo_reader(config, is_resumed=is_resumed, writes=process.is_main_process)
    concepts = _loaded_concepts(config, reader, notice)
    pool = LatentPool(config, seed, concepts, base, manager.device, reader)
    manager.place(base.vae)
    if not config.not_cache_latents:
        pool.fill(lambda done, total: report(PhaseProgress("latents", done, total)), controls.stop.is_set)
    pictures = None
    looks = process.is_main_process or config.shard_weights  # a model that is shared computes in all or none
    if config.gauge_interval and looks and not controls.stop.is_set():
        pictures = gauge_pictures(config, seed, concepts, pool, base.vae.config.scaling_factor)
    manager.park(base.vae)
    forget_decoded()
    if controls.stop.is_set():
        return None

    manager.place(base.unet)
    manager.place(base.text_encoder)
    if config.not_cache_latents:
        manager.place(base.vae)
    told = [
        (role, photo.caption)
        for one in concepts
        for role, photos in (("instance", one.instance), ("class", one.class_images))
        for photo in photos
    ]
    captions = [caption for _, caption in told] + [""] * (config.caption_dropout > 0)
    looked_at = [*(pictures.drift_captions if pictures else ())]
    looked_at += [concept.class_prompt or "" for concept in config.concepts] * (config.background_weight != 1)
    inputs = tokenize(base, captions, pad_tokens=config.pad_tokens, notice=notice, also=looked_at)
    conditions = CaptionConditions(base, inputs, trained=config.train_text_encoder)
    if not config.train_text_encoder:
        manager.park(base.text_encoder)
    if config.zero_terminal_snr:
        base.noise_scheduler_config |= zero_terminal_schedule(base.noise_scheduler_config)
    alpha_bar = alphas_cumprod(base).to(manager.device)
    batches = BatchMaker(
        config, seed, pool, concepts, base.vae.config.scaling_factor, len(alpha_bar),
        process.process_index, process.num_processes,
    )  # fmt: skip
    steps = num_steps_of(config, sum(len(one.instance) for one in concepts), process.num_processes)
    if config.teacher_prior:
        fill_teacher(
            batches, base, conditions, alpha_bar, steps,
            lambda done, total: report(PhaseProgress("latents", done, total)), controls.stop.is_set,
        )  # fmt: skip
    if config.background_weight != 1:
        find_subjects(batches, base, conditions, alpha_bar, controls.stop.is_set)
    gauges = None
    if pictures is not None and not controls.stop.is_set():
        gauges = Gauges(
            pictures, base, conditions, alpha_bar,
            base.noise_scheduler_config.get("prediction_type", "epsilon"), config.mixed_precision, seed,
        )  # fmt: skip
    if controls.stop.is_set():
        return None
    photo_files = [photo.path for pictures in concepts for photo in (*pictures.instance, *pictures.class_images)]
    # Another square of a photo is another photo to the run.
    photo_files += [file for one in config.concepts if (file := Path(one.instance_data_dir) / FOCUS_FILE).is_file()]
    return Materials(base, batches, conditions, alpha_bar, seed, steps, photo_files, told, base_key, gauges)


def _loaded_concepts(config: TrainingConfig, reader: int, notice: Callable[[str], None]) -> list[ConceptPhotos]:
    return [
        load_concept(
            concept,
            read_prompts_from_txts=config.read_prompts_from_txts,
            num_class_images=config.num_class_images if config.with_prior_preservation else 0,
            report=notice,
            reader=reader,
        )
        for concept in config.concepts
    ]


def _photo_reader(config: TrainingConfig, *, is_resumed: bool, writes: bool) -> int:
    """Return the reader of photos that the run goes on with, and note that of a new run in its records."""
    if config.output_dir is None:
        return PHOTO_READER
    file = RunFolder(Path(config.output_dir)).photo_reader_path
    if is_resumed:
        return recorded_reader(file)
    if writes:
        write_reader(file)
    return PHOTO_READER


def zero_terminal_schedule(scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what changes in a base's noise schedule so that its last level is pure noise, for samplers to read too.

    Raises ConfigError for a base that predicts eps: of pure noise that is the noise itself, and nothing is learned
    (Lin et al. 2023, arXiv 2305.08891, section 3.1). Samplers have to start at that level (section 3.3).
    """
    if scheduler_config.get("prediction_type", "epsilon") != "v_prediction":
        message = "is for bases that predict v, such as SD 2.1 at 768 px; this one predicts the noise itself."
        raise ConfigError([FieldProblem("zero_terminal_snr", message)])
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def alphas_cumprod(base: Base) -> "Tensor":
    """Return alpha_bar_t for every timestep t of the base's noise schedule, shape (timesteps,)."""
    from diffusers import DDPMScheduler

    config = dict(base.noise_scheduler_config)
    is_zero_at_last = config.pop("rescale_betas_zero_snr", False)
    alpha_bar: Tensor = DDPMScheduler.from_config(config).alphas_cumprod
    return zero_terminal_snr(alpha_bar) if is_zero_at_last else alpha_bar


def with_class_images(
    config: TrainingConfig,
    base: Base,
    *,
    workspace: Workspace,
    manager: ModelManager,
    report: Report,
    controls: Controls,
    token: str | None = None,
) -> TrainingConfig:
    """Return the settings with every concept's class pictures complete and their folder named."""
    if not config.with_prior_preservation:
        return config
    if config.class_model_name_or_path is not None:
        base = load_base(
            config.class_model_name_or_path, vae=config.pretrained_vae_name_or_path, token=token,
            models_dir=workspace.models_dir,
        )  # fmt: skip
    base_key = weights_fingerprint(base.unet, base.text_encoder)
    vae_key = weights_fingerprint(base.vae)

    def placed() -> Base:
        for part in (base.unet, base.text_encoder, base.vae):
            manager.place(part)
        # Whose cache they are in tells which base made them; its name may be a path of this machine.
        return dataclasses.replace(base, name="")

    concepts = []
    for concept in config.concepts:
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
            autocast_dtype=manager.autocast_dtype,
            keep_latents=config.keep_class_latents,
            report=lambda done, total: report(PhaseProgress("class images", done, total)),
            should_stop=controls.stop.is_set,
            notice=lambda text: report(Notice(text, "warning")),
        )
        folder = concept.class_data_dir or (str(files[0].parent) if files else None)
        concepts.append(dataclasses.replace(concept, class_data_dir=folder))
    if config.class_model_name_or_path is not None:
        for part in (base.unet, base.text_encoder, base.vae):
            manager.park(part)
    return dataclasses.replace(config, concepts=tuple(concepts))
