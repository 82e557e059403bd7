"""A model as a repository on the Hub: private by default, updated in place, in one commit."""

import contextlib
import fnmatch
import functools
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.config.limits import as_written, token_problem
from dreambooth.errors import ExportError, hide, quoted
from dreambooth.events import OnProgress
from dreambooth.export.model_card import BLEED_PICTURE, bleed_dir, card_json, lora_name, model_card, settings_json
from dreambooth.export.saved_lora import convert_lora
from dreambooth.formats.layout import ALL_SAVED_FILES, CARD, MODEL_INDEX, layout_of, lora_file, saved_step_kind
from dreambooth.models.saved_hashes import refuse_other_hash
from dreambooth.records.saved_weights import SHARD

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo
    from huggingface_hub.errors import HfHubHTTPError

SETTINGS_FILE = "dreambooth.json"
# A repository with one of these is a model; one that is not empty and has none is something else.
SIGNS_OF_A_MODEL = (MODEL_INDEX, SETTINGS_FILE)
EMPTY = {".gitattributes", "README.md"}
SAMPLE = re.compile(rf"samples/[0-9]+\.png|{re.escape(BLEED_PICTURE)}")
# The libraries record where a part was loaded from: the user's disk, or the cache of an account.
CONFIGS = ("config.json", MODEL_INDEX, "scheduler_config.json", "tokenizer_config.json")
PLACES = {"_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file"}
WHERE_TOKENS_ARE_MADE = "huggingface.co/settings/tokens"


@dataclass(frozen=True)
class PushResult:
    """Where the model is, whether the repository is new, and who can see it."""

    repo_id: str
    url: str
    created: bool
    private: bool

    def __str__(self) -> str:
        seen = (
            "private: only you and people you give access can see it" if self.private else "public: everyone can see it"
        )
        return f"{'Made' if self.created else 'Updated'} {self.url} ({seen})."


def refuse_push(repo_id: str | None, token: str | None) -> None:
    """Raise ExportError for an upload that the Hub would refuse, before anything is prepared for it.

    Needs a token that can write, an account the Hub knows, and a repository (None: not named yet) without other
    content.
    """
    token = _checked_token(token)
    if repo_id is not None:
        _check_name(repo_id)
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        account = api.whoami()
        full_id = repo_id if repo_id is None or "/" in repo_id else f"{account['name']}/{repo_id}"
        if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise _may_not_write(full_id or "the Hub")
        if full_id is not None:
            _check_name(full_id)
            _existing(api, full_id)
    except (_http_error(), OSError, RuntimeError, ValueError, ImportError) as error:  # ImportError: a proxy's package
        raise _error_of(repo_id or "The repository", error) from None


def push(
    model_dir: Path,
    repo_id: str,
    *,
    token: str | None,
    private: bool = True,
    single_file: Path | None = None,
    on_progress: OnProgress | None = None,
) -> PushResult:
    """Upload a step, its samples, a card and optionally its single file; return where it is.

    `repo_id` is `owner/name`, or a name in the user's account; a LoRA is one file there, named after it. An existing
    repository is updated in one commit if it is empty (apart from a README), or holds a diffusers model or a LoRA of
    ours; its name and visibility stay. Files of an earlier push that are no longer needed are deleted, README.md is
    rewritten, all other files stay. Only names that we write are uploaded, without paths of this machine. `on_progress`
    gets the uploaded and the total bytes of weights.

    Raises ExportError with a sentence for each reason. The model on the Hub is unchanged then; a repository created for
    it stays empty, and the next push fills it.
    """
    token = _checked_token(token)
    _check_name(repo_id)
    with contextlib.ExitStack() as stack:
        files = _files(model_dir)
        if lora_file(model_dir) is not None:
            files |= stack.enter_context(_lora_files(model_dir, lora_name(repo_id)))
        return _pushed(model_dir, repo_id, files, token, private, single_file, on_progress)


def _pushed(
    model_dir: Path,
    repo_id: str,
    files: dict[str, Path | bytes],
    token: str,
    private: bool,
    single_file: Path | None,
    on_progress: OnProgress | None,
) -> PushResult:
    """Upload these files and those generated for the repository."""
    if single_file is not None and lora_file(model_dir) is None:  # a LoRA is one file for web UIs already
        files[single_file_name(repo_id)] = _checked_single_file(single_file)
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        full_id = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
        _check_name(full_id)
        info = _existing(api, full_id)
        created = info is None
        if info is None:
            api.create_repo(full_id, private=private)
            info = api.model_info(full_id)
        files |= {
            "README.md": model_card(model_dir, full_id, single_file).encode(),
            SETTINGS_FILE: settings_json(model_dir).encode(),
        }
        _upload(
            api, full_id, info, files, on_progress, functools.partial(refuse_other_hash, model_dir, error=ExportError)
        )
    except (_http_error(), OSError, RuntimeError, ValueError, ImportError) as error:  # ImportError: a proxy's package
        raise _error_of(repo_id, error) from None
    return PushResult(full_id, f"{api.endpoint}/{full_id}", created, bool(info.private))


def single_file_name(repo_id: str) -> str:
    """Return the name of the single file in the repository: always the same, so that a later push replaces it."""
    return f"{repo_id.rpartition('/')[2]}.safetensors"


# What is given ------------------------------------------------------------------------------------------------------


def _checked_token(token: str | None) -> str:
    if not token:
        raise ExportError(
            "No Hub token is set.", "Uploads need an account.",
            f"Create one with write permission at {WHERE_TOKENS_ARE_MADE}, and set HF_TOKEN (or put it into .env).",
        )  # fmt: skip
    hide(token)
    if problem := token_problem(token):
        # The client would include the whole header in its error.
        raise ExportError("This HF_TOKEN cannot be used.", f"It {problem}")
    return token


def _check_name(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError

    # A public name that the package does not export explicitly, which a strict type checker rejects.
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ExportError(
            f"{as_written(repo_id)} is not a repository name.",
            "Use owner/name. Each part has 1 to 96 characters of A-Z, a-z, 0-9, - _ and . , without -- or .., "
            "without - or . at either end, and without .git at the end.",
            "Choose another name; it is never changed for you.",
        ) from None


def _checked_single_file(file: Path) -> Path:
    if file.suffix != ".safetensors" or not file.is_file():
        raise ExportError(
            f"{file.name} cannot be uploaded.", "It is not a .safetensors file, or does not exist.",
            "Convert the model to one, or push without it.",
        )  # fmt: skip
    return file


def _files(model_dir: Path) -> dict[str, Path | bytes]:
    """Return the files of a model's folder to upload, by name in the repository; raises ExportError without one."""
    if saved_step_kind(model_dir) is None:
        raise ExportError(
            f'"{model_dir}" is not a saved step.', "It contains neither a model nor a LoRA.", "Name a step folder."
        )
    found = [file for pattern in (*ALL_SAVED_FILES, "samples/*.png") for file in sorted(model_dir.glob(pattern))]
    named = {file.relative_to(model_dir).as_posix(): file for file in found if file.is_file() and not file.is_symlink()}
    files = {name: _without_places(file) for name, file in named.items() if _is_ours(name)}
    if (picture := bleed_dir(model_dir) / BLEED_PICTURE).is_file():
        files[BLEED_PICTURE] = picture
    if lora_file(model_dir) is not None:
        return files
    parts = layout_of(model_dir).parts
    missing = [part.config_file for part in parts if part.config_file not in files]
    missing += [
        f"the weights of {part.name}" for part in parts if not any(_is_weights_of(part.name, name) for name in files)
    ]
    if missing:
        raise ExportError(
            f"{model_dir} is not a complete model.", f"It lacks {', '.join(missing)}.",
            "Save the model again as .safetensors, or name another step.",
        )  # fmt: skip
    return files


@contextlib.contextmanager
def _lora_files(model_dir: Path, name: str) -> Iterator[dict[str, Path | bytes]]:
    """Yield a LoRA's file under its name in the repository and in prompts, and the card with that name."""
    with tempfile.TemporaryDirectory(prefix="dreambooth-") as folder:
        file = convert_lora(model_dir, Path(folder) / f"{name}.safetensors").path
        card = json.loads(card_json(model_dir))
        card["lora"]["file"] = file.name
        yield {file.name: file, CARD: f"{json.dumps(card, indent=2)}\n".encode()}


def _is_weights_of(part: str, name: str) -> bool:
    return name.startswith(f"{part}/") and name.endswith(".safetensors")


def _is_ours(name: str) -> bool:
    """Return whether a push writes this name; other files in the repository are the user's."""
    file = name.rpartition("/")[2]
    if ".safetensors" in file and not SHARD.fullmatch(file):
        return False
    # `*` would match across folders.
    return SAMPLE.fullmatch(name) is not None or any(
        name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern) for pattern in ALL_SAVED_FILES
    )


def _without_places(file: Path) -> Path | bytes:
    """Return the content of a part's settings without paths of this machine; any other file unchanged.

    Raises ExportError if it cannot be read.
    """
    if file.name not in CONFIGS:
        return file
    try:
        values = dict(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        raise ExportError(f"{file} is damaged.", "It is not readable as JSON.", "Save the model again.") from None
    public = {name: value for name, value in values.items() if name not in PLACES}
    return file if public == values else f"{json.dumps(public, indent=2)}\n".encode()


# The repository -----------------------------------------------------------------------------------------------------


def _existing(api: "HfApi", repo_id: str) -> "ModelInfo | None":
    """Return the Hub's information on the repository, None if there is none; raises ExportError if it is not ours."""
    from huggingface_hub import errors

    try:
        info = api.model_info(repo_id)
    except errors.GatedRepoError:
        raise
    except errors.RepositoryNotFoundError:
        return None
    if info.id != repo_id:
        raise ExportError(
            f"{repo_id} is called {info.id} on the Hub.",
            "It was renamed or is spelled differently, and the Hub would upload there without asking.",
            f"Push to {info.id}, or choose another name.",
        )
    names = _names(info)
    if names - EMPTY and not names & set(SIGNS_OF_A_MODEL):
        raise ExportError(
            f"{repo_id} holds something else.", f"It has {min(names - EMPTY)}, and no diffusers model.",
            "Choose another name, or empty that repository first.",
        )  # fmt: skip
    return info


def _names(info: "ModelInfo") -> set[str]:
    return {one.rfilename for one in info.siblings or []}


def _upload(
    api: "HfApi",
    repo_id: str,
    info: "ModelInfo",
    files: dict[str, Path | bytes],
    on_progress: OnProgress | None,
    on_hash: Callable[[str, str], None],
) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    additions = [CommitOperationAdd(name, content) for name, content in files.items()]
    weights = [one for one in additions if one.path_in_repo.endswith(".safetensors")]
    for one in weights:
        on_hash(one.path_in_repo, one.upload_info.sha256.hex())  # which the client has read the file for
    total, done = sum(one.upload_info.size for one in weights), 0
    for one in weights:
        # Nothing of it is visible before the commit.
        api.preupload_lfs_files(repo_id, [one], free_memory=False)
        done += one.upload_info.size
        if on_progress is not None:
            on_progress(done, total)
    operations: list[Any] = [*additions, *(CommitOperationDelete(name) for name in _stale(repo_id, info, files))]
    # Against the revision that was checked: a concurrent change is reported instead of overwritten.
    api.create_commit(repo_id, operations, commit_message="Upload the model", parent_commit=info.sha)


def _stale(repo_id: str, info: "ModelInfo", files: dict[str, Path | bytes]) -> list[str]:
    """Return the files that would remain beside the new model as if they belonged to it."""
    names = _names(info)
    old = {name for name in names if _is_ours(name)}
    if SETTINGS_FILE in names:
        old |= {single_file_name(repo_id), f"{lora_name(repo_id)}.safetensors"}
    else:
        # Without an earlier push, parts of the model are replaced, but images belong to the user.
        old = {name for name in old if not SAMPLE.fullmatch(name)}
    return sorted((old & names) - files.keys())


# What went wrong ----------------------------------------------------------------------------------------------------


def _http_error() -> type[Exception]:
    """Return the exception type of the client's HTTP library, which differs between its major versions."""
    from huggingface_hub import errors

    # The type depends on the version, and so does what a checker sees.
    return errors.HTTPError  # type: ignore[attr-defined,no-any-return,unused-ignore]


def _error_of(repo_id: str, error: BaseException) -> ExportError:
    """Return the client's error in words for the user."""
    from huggingface_hub import errors

    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__  # the client says of large files only that they failed
    if isinstance(error, errors.GatedRepoError):
        return ExportError(
            f"{repo_id} is gated.", "The account of this HF_TOKEN has no access to it.",
            "Ask its owner for access, or use a name in your own account.",
        )  # fmt: skip
    if isinstance(error, errors.RepositoryNotFoundError):
        return ExportError(
            f"{repo_id} cannot be written to.", "It belongs to another account, or this HF_TOKEN cannot access it.",
            "Use its owner's token, or a name in your own account.",
        )  # fmt: skip
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(repo_id, error)
    words = " ".join(quoted(error).split())
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ExportError("The Hub cannot be reached.", "HF_HUB_OFFLINE is set.", "Unset it, then try again.")
    if isinstance(error, (_http_error(), ConnectionError, TimeoutError)):
        return ExportError("The Hub cannot be reached.", words, "Check the network, then try again.")
    return ExportError(
        "The upload was interrupted.", words, "Try again; an incomplete upload is not visible on the Hub."
    )


def _refused(repo_id: str, error: "HfHubHTTPError") -> ExportError:
    # The client's message has several lines.
    status, words = error.response.status_code, " ".join(quoted(error).split())
    if status == 413 or (status == 403 and "storage" in words):
        return ExportError(
            "The Hub account is out of storage.", words, "Delete something there, or use another account."
        )
    if status >= 500:
        return ExportError("The Hub has a server error.", words, "Try again later.")
    if status == 403:
        return _may_not_write(repo_id)
    reasons = {
        401: ("The Hub does not accept this HF_TOKEN.", "It is mistyped or was revoked.", "Create a new one."),
        409: (f"{repo_id} is being changed by somebody else.", "It was not overwritten.", "Try again."),
        412: (f"{repo_id} was changed during the upload.", "It was not overwritten.", "Check it, then try again."),
        429: ("The Hub is limiting requests.", "Too many requests were sent.", "Try again later."),
    }  # fmt: skip
    what, why, todo = reasons.get(status, ("The Hub refused the upload.", words, "Try again later."))
    return ExportError(what, why, todo)


def _may_not_write(repo_id: str) -> ExportError:
    return ExportError(
        f"This HF_TOKEN cannot write to {repo_id}.", "It can only read, or another account owns it.",
        f"Create a token with write permission at {WHERE_TOKENS_ARE_MADE}.",
    )  # fmt: skip
