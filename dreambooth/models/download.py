"""A base on the Hub: its parts downloaded to the local cache, or the reason in words why that failed.

Without a network only the cache is used; the error then says what is missing in it.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.config.limits import as_written
from dreambooth.config.training import SD15
from dreambooth.errors import BaseModelError, quoted
from dreambooth.formats.layout import ALL_PARTS, ALL_TEXT_PATTERNS, layout_of

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

# Names still in use, and the current names of their models.
SUCCESSORS = {
    "runwayml/stable-diffusion-v1-5": SD15,
    "runwayml/stable-diffusion-inpainting": SD15,
}
VAE_STEM = next(part.weights_stem for part in ALL_PARTS if part.name == "vae")
OTHER_VARIANTS = ["*.fp16.*", "*.non_ema.*", "*.fp32.*"]
TOKENIZER_FILES = ("*.json", "merges.txt")


def downloaded_base(
    name: str, revision: str | None, variant: str | None, token: str | None, *, given: Collection[str] = ()
) -> Path:
    """Return the folder of a Hub repository's parts, downloaded unless cached.

    `given` are the parts that come from elsewhere and may be missing (`vae`, `tokenizer`).

    Raises BaseModelError with its own sentence for a repository that was renamed, mistyped, is gated, private,
    unreachable, incomplete in the cache, or not a diffusers model.
    """
    _refuse_no_base(name)
    for weights, with_variants in _kinds_of_weights(variant, given):
        folder, from_hub = _snapshot(name, revision, token, [*ALL_TEXT_PATTERNS, *weights], with_variants=with_variants)
        missing = missing_files(folder, variant, given=given)
        lacks_weights = any(name.endswith(".safetensors") for name in missing)
        if not lacks_weights or set(missing) & set(layout_of(folder).needed_files):
            break
    if missing:
        raise _not_whole(name, missing, from_hub=from_hub)
    return folder


def downloaded_configs(
    name: str, revision: str | None, variant: str | None, token: str | None, *, given: Collection[str] = ()
) -> tuple[Path, int | None]:
    """Return the folder of a Hub repository's configurations, and the bytes of weights still to be downloaded.

    0 if the cache has them all, None if the Hub does not say. Raises as `downloaded_base` does.
    """
    _refuse_no_base(name)
    folder, from_hub = _snapshot(name, revision, token, list(ALL_TEXT_PATTERNS), with_variants=False)
    missing = missing_files(folder, variant, given=given)
    if not missing:
        return folder, 0
    if not from_hub or not all(file.endswith(".safetensors") for file in missing):
        raise _not_whole(name, missing, from_hub=from_hub)
    for weights, with_variants in _kinds_of_weights(variant, given):
        files = _files_on_hub(name, revision, token, weights, with_variants=with_variants)
        if files is None:
            return folder, None
        if any(file.filename.startswith("unet/") for file in files):
            return folder, sum(file.file_size or 0 for file in files if file.will_download)
    raise _not_whole(name, missing, from_hub=True)


def hub_revision(revision: str | None, variant: str | None) -> tuple[str | None, str | None]:
    """Return revision and variant as today's Hub has them: the seed notebook's branch fp16 is a variant now."""
    return (None, variant or "fp16") if revision == "fp16" else (revision, variant)


def _refuse_no_base(name: str) -> None:
    if name in SUCCESSORS:
        raise BaseModelError(
            f"{name} is no longer on the Hub.", "Its owner removed it in 2024.", f"Use {SUCCESSORS[name]}."
        )
    _refuse_no_hub_id(name, "base model")


def _kinds_of_weights(variant: str | None, given: Collection[str]) -> list[tuple[list[str], bool]]:
    """Return patterns of weight files in order of preference, and whether they are of a variant.

    Before safetensors, weights were pickles; they are read as plain tensors. Some repositories have fp16 alone.
    """
    parts = [part for part in ALL_PARTS if part.name not in given]
    variants = (variant,) if variant else (None, "fp16")
    kinds = []
    for infix in (f".{one}" if one else "" for one in variants):
        kinds.append(([f"{part.name}/{part.weights_stem}*{infix}.safetensors*" for part in parts], bool(infix)))
        kinds.append(([f"{part.name}/{part.pickle_stem}*{infix}.bin" for part in parts], bool(infix)))
    return kinds


def _files_on_hub(
    name: str, revision: str | None, token: str | None, patterns: list[str], *, with_variants: bool
) -> "list[DryRunFileInfo] | None":
    """Return a repository's files matching these patterns with their sizes, None if the Hub does not say."""
    from huggingface_hub import errors, snapshot_download

    try:
        return snapshot_download(
            name, revision=revision, token=token, allow_patterns=patterns, dry_run=True,
            ignore_patterns=None if with_variants else OTHER_VARIANTS,
        )  # fmt: skip
    # The Hub answered a moment ago: only the sizes are unknown.
    except (errors.HfHubHTTPError, OSError):
        return None


def downloaded_tokenizer(name: str, token: str | None, todo: str) -> Path:
    """Return the folder of a Hub repository's tokenizer files, at its top or in `tokenizer/`.

    Raises BaseModelError, with this advice, if they cannot be had.
    """
    patterns = [*TOKENIZER_FILES, *(f"tokenizer/{file}" for file in TOKENIZER_FILES)]
    return downloaded_files(name, "tokenizer", patterns, token, todo)


def downloaded_vae(name: str, token: str | None) -> Path:
    """Return the folder of a Hub repository's VAE, at its top or in `vae/`; raises BaseModelError without one."""
    todo = "Check the name, or leave pretrained_vae_name_or_path out."
    for infix, suffix in (("", ".safetensors"), ("", ".bin"), (".fp16", ".safetensors")):
        weights = f"{VAE_STEM}{infix}{suffix}"
        patterns = [f"{place}{file}" for place in ("", "vae/") for file in ("config.json", weights)]
        folder = downloaded_files(name, "VAE", patterns, token, todo)
        if any((folder / place / weights).exists() for place in ("", "vae")):
            return folder
    raise BaseModelError(f'The VAE "{name}" cannot be loaded.', "Its repository contains no VAE weights.", todo)


def check_vae(source: str, token: str | None) -> None:
    """Raise BaseModelError if a VAE is neither here nor on the Hub, judged by its configuration."""
    if Path(source).exists():
        return
    todo = "Check the name, or leave pretrained_vae_name_or_path out."
    folder = downloaded_files(source, "VAE", ["config.json", "vae/config.json"], token, todo)
    if not any((folder / place / "config.json").exists() for place in ("", "vae")):
        raise BaseModelError(f'The VAE "{source}" cannot be loaded.', "Its repository has no VAE.", todo)


def downloaded_files(name: str, kind: str, patterns: list[str], token: str | None, todo: str) -> Path:
    """Return the folder of these files of a Hub repository; raises BaseModelError, with this advice, on failure."""
    _refuse_no_hub_id(name, kind)
    with_variants = any(".fp16." in pattern for pattern in patterns)
    try:
        return _snapshot(name, None, token, patterns, with_variants=with_variants)[0]
    except BaseModelError as error:
        raise BaseModelError(f'The {kind} "{name}" cannot be loaded.', error.why or error.what, todo) from None


def _refuse_no_hub_id(name: str, kind: str) -> None:
    if name.count("/") != 1 or name.startswith(("/", ".", "~")) or name.endswith((".safetensors", ".ckpt")):
        raise BaseModelError(
            f'There is no {kind} "{name}".',
            "It is not a file or folder on this machine; a Hub id has the form owner/name.",
            "Check the spelling, or use `starter`." if kind == "base model" else "Check the spelling.",
        )


def missing_files(folder: Path, variant: str | None, *, given: Collection[str] = ()) -> list[str]:
    """Return what a folder lacks to be a base, as names or patterns in it; `given` parts are not needed."""
    infix = f".{variant}" if variant else ""
    layout = layout_of(folder)
    needed = [name for name in layout.needed_files if name.partition("/")[0] not in given]
    missing = [name for name in needed if not (folder / name).exists()]
    for tokenizer in layout.tokenizers:
        if tokenizer not in given:
            missing += [f"{tokenizer}/{name}" for name in vocabulary_missing(folder / tokenizer)]
    for part in layout.parts:
        new = folder.glob(f"{part.name}/{part.weights_stem}*{infix}.safetensors")
        old = folder.glob(f"{part.name}/{part.pickle_stem}*{infix}.bin")
        if part.name not in given and not any(new) and not any(old):
            missing.append(f"{part.name}/{part.weights_stem}{infix}.safetensors")
    return missing


def vocabulary_missing(folder: Path) -> list[str]:
    """Return the files that a folder lacks to be a tokenizer: tokenizer.json, or the other two."""
    if (folder / "tokenizer.json").is_file():
        return []
    return [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]


def _not_whole(name: str, missing: list[str], *, from_hub: bool) -> BaseModelError:
    from huggingface_hub import is_offline_mode

    what = f"Missing: {', '.join(missing)}."
    if from_hub:
        return BaseModelError(
            f"{name} is not a complete diffusers model.", what,
            "Choose an SD 1.x, 2.x or SDXL model; if it is a single file, download that and give its path.",
        )  # fmt: skip
    why = "HF_HUB_OFFLINE prevents downloading them" if is_offline_mode() else "The Hub cannot be reached"
    return BaseModelError(
        f"{name} is only partly in the local cache.", f"{what} {why}.",
        "Connect once without HF_HUB_OFFLINE, or give a folder, a file or `starter`.",
    )  # fmt: skip


def _snapshot(
    name: str, revision: str | None, token: str | None, patterns: list[str], *, with_variants: bool
) -> tuple[Path, bool]:
    """Return the repository's folder in the cache, and whether the Hub was asked which files belong to it."""
    from huggingface_hub import errors, is_offline_mode, snapshot_download

    ignored = None if with_variants else OTHER_VARIANTS
    try:
        folder = snapshot_download(
            name, revision=revision, token=token, allow_patterns=patterns, ignore_patterns=ignored
        )
        return Path(folder), not is_offline_mode()
    except errors.IncompleteSnapshotError as error:
        # Something is missing, though it may not be needed.
        return Path(error.snapshot_path), False
    except errors.GatedRepoError:
        raise _gated(name, token) from None
    except errors.RepositoryNotFoundError:
        raise _not_found(name, token) from None
    except errors.RevisionNotFoundError:
        raise BaseModelError(
            f"{name} has no revision {as_written(revision)}.",
            "",
            "Leave it out, or check the branches of the repository.",
        ) from None
    except errors.HFValidationError:
        raise BaseModelError(
            f"There is no base model {as_written(name)}.",
            "It is neither a file or folder on this machine nor a valid Hub id.",
            "Check the spelling.",
        ) from None
    # ImportError: the package for SOCKS proxies is missing.
    except (
        errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError, ImportError,
    ) as error:  # fmt: skip
        raise _unreachable(name, error) from None


def _gated(name: str, token: str | None) -> BaseModelError:
    if token is None:
        return BaseModelError(
            f"{name} is gated, and no Hub token is set.", "Its owner requires a login to download it.",
            "Accept the terms on its page, then set HF_TOKEN to a token of that account.",
        )  # fmt: skip
    return BaseModelError(
        f"{name} is gated.", "The account of this HF_TOKEN has no access to it.",
        "Accept the terms on its page with that account; some owners review requests by hand.",
    )  # fmt: skip


def _not_found(name: str, token: str | None) -> BaseModelError:
    # The Hub answers both alike, so that nobody learns which private names exist.
    private = "it is private and no HF_TOKEN is set" if token is None else "this HF_TOKEN cannot access it"
    return BaseModelError(
        f"The Hub has no model {as_written(name)}.", f"The name is mistyped, or {private}.",
        "Check the name; for a private model set HF_TOKEN to a token with access.",
    )  # fmt: skip


def _unreachable(name: str, error: Exception) -> BaseModelError:
    from huggingface_hub import errors, is_offline_mode

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return BaseModelError(
            "The Hub does not accept this HF_TOKEN.", "It is mistyped or was revoked.",
            "Create a new one in your account settings, or remove HF_TOKEN for public models.",
        )  # fmt: skip
    if is_offline_mode() and isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return BaseModelError(
            f"{name} is not in the local cache and could not be downloaded.", "HF_HUB_OFFLINE prevents downloading it.",
            "Connect once without HF_HUB_OFFLINE, or give a folder, a file or `starter`.",
        )  # fmt: skip
    # A snapshot's own error wraps the reason in advice about its arguments.
    reason = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    return BaseModelError(
        f"{name} is not in the local cache and could not be downloaded.", quoted(reason),
        "Check the network, or give a folder, a file or `starter`.",
    )  # fmt: skip
