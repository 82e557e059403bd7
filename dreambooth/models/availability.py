"""Whether the models that a run needs can be had, checked before anything starts, and how much must be downloaded."""

from collections.abc import Collection
from pathlib import Path

from dreambooth.config.training import TrainingConfig
from dreambooth.formats.layout import family_of, lora_file
from dreambooth.models.base import check_folder, local_base, read_card
from dreambooth.models.download import check_vae, downloaded_configs, hub_revision
from dreambooth.models.tokenizer import tokenizer_folder


def bytes_to_download(config: TrainingConfig, token: str | None, models_dir: Path | None = None) -> int | None:
    """Return how many bytes of these settings' models are not on this machine yet; None if the Hub does not say.

    For a model on the Hub the configurations and the tokenizer are downloaded to the cache, 1 to 3 MB: they tell its
    family. Raises BaseModelError for a model that is missing, misspelt, gated, unreachable, or of another kind.
    """
    vae, tokenizer = config.pretrained_vae_name_or_path, config.tokenizer_name
    given = {part for part, other in (("vae", vae), ("tokenizer", tokenizer)) if other is not None}
    if tokenizer is not None:
        tokenizer_folder(tokenizer, token)
    if vae is not None:
        check_vae(vae, token)
    base, revision, variant = config.pretrained_model_name_or_path, config.revision, config.variant
    sizes = [_missing_bytes(base, token, models_dir, revision, variant, given)]
    if config.with_prior_preservation and config.class_model_name_or_path is not None:
        sizes.append(_missing_bytes(config.class_model_name_or_path, token, models_dir))
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _missing_bytes(
    name: str,
    token: str | None,
    models_dir: Path | None,
    revision: str | None = None,
    variant: str | None = None,
    given: Collection[str] = (),
) -> int | None:
    source = local_base(name, models_dir)
    if source is None:
        folder, missing_bytes = downloaded_configs(name, *hub_revision(revision, variant), token, given=given)
        family_of(folder)
        return missing_bytes
    if source.is_file():
        family_of(source)
        return 0
    about = read_card(str(source)).lora
    if about is not None and lora_file(source) is not None:
        return _missing_bytes(about.base, token, models_dir)
    check_folder(source, variant, given)
    return 0
