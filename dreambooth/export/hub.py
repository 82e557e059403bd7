"""A model as a repository on the Hub: private unless asked otherwise, updated in place, in one commit."""

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import ExportError, quoted
from dreambooth.export.model_card import model_card, settings_json
from dreambooth.storage import WEIGHT_FILES

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo
    from huggingface_hub.errors import HfHubHTTPError

SETTINGS_FILE = "dreambooth.json"
# What a push of ours may put there, and so takes away when a later one has it no more.
OURS = (*WEIGHT_FILES, "samples/*.png", "README.md", SETTINGS_FILE)
# A repository that holds one of these is a model already; one that holds none and is not empty is somebody's work.
SIGNS_OF_A_MODEL = ("model_index.json", SETTINGS_FILE)
EMPTY = {".gitattributes", "README.md"}


@dataclass(frozen=True)
class PushResult:
    """Where the model is now, whether the repository is new, and who can see it."""

    repo_id: str
    url: str
    created: bool
    private: bool

    def __str__(self) -> str:
        seen = "private: only you and those you let in see it" if self.private else "public: everyone sees it"
        return f"{'Made' if self.created else 'Updated'} {self.url} ({seen})."


def push(
    model_dir: Path, repo_id: str, *, token: str | None, private: bool = True, single_file: Path | None = None
) -> PushResult:
    """Upload a model's folder, its samples, a card and perhaps its single file; return where it is.

    `repo_id` is `owner/name`, or a name of one's own. A repository that is there is updated in one commit: files of an
    earlier push that this one lacks go, all others stay, and so do its name and visibility. Raises ExportError, in a
    sentence for each reason, before anything is changed.
    """
    if token is None:
        raise ExportError(
            "There is no token for the Hub.", "Uploading is done in the name of an account.",
            "Make one that may write, at huggingface.co/settings/tokens, and put it into HF_TOKEN or .env.",
        )  # fmt: skip
    if not (model_dir / "model_index.json").is_file():
        raise ExportError(f"{model_dir} is no model.", "model_index.json is not in it.", "Name a step folder.")
    _check_name(repo_id)
    from huggingface_hub import HfApi, errors

    api = HfApi(token=token)
    try:
        full_id = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
        info = _existing(api, full_id)
        created = info is None
        if info is None:
            api.create_repo(full_id, private=private)
            info = api.model_info(full_id)
        _upload(
            api, full_id, info, _files(model_dir, full_id, single_file), model_card(model_dir, full_id, single_file)
        )
    except errors.RepositoryNotFoundError:
        raise ExportError(
            f"{repo_id} cannot be written to.", "It is another account's, or this HF_TOKEN may not see it.",
            "Use a token of its owner, or a name of your own.",
        ) from None  # fmt: skip
    except errors.HfHubHTTPError as error:
        raise _refused(repo_id, error) from None
    except (errors.OfflineModeIsEnabled, OSError) as error:
        raise ExportError(
            "The Hub cannot be reached.", quoted(error), "Check the network; HF_HUB_OFFLINE must not be set."
        ) from None
    return PushResult(full_id, f"{api.endpoint}/{full_id}", created, bool(info.private))


def _check_name(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ExportError(
            f"{repo_id[:200]!r} is no name of a repository.",
            "It reads owner/name, of letters, digits, - _ and . , with no -- or .. and at most 96 of them.",
            "Change it; it is never changed for you.",
        ) from None


def _existing(api: "HfApi", repo_id: str) -> "ModelInfo | None":
    """Return what the Hub says of the repository, None when there is none; raises ExportError when it is another's."""
    from huggingface_hub import errors

    try:
        info = api.model_info(repo_id)
    except errors.RepositoryNotFoundError:
        return None
    if info.id != repo_id:
        raise ExportError(
            f"{repo_id} was renamed to {info.id}.",
            "The Hub would put the model there.",
            f"Push to {info.id} by its name.",
        )
    names = _names(info)
    if names - EMPTY and not names & set(SIGNS_OF_A_MODEL):
        raise ExportError(
            f"{repo_id} holds something else.", f"It has {min(names - EMPTY)}, and no diffusers model.",
            "Choose another name, or empty it first.",
        )  # fmt: skip
    return info


def _names(info: "ModelInfo") -> set[str]:
    return {one.rfilename for one in info.siblings or []}


def _files(model_dir: Path, repo_id: str, single_file: Path | None) -> dict[str, Path]:
    """Return what is uploaded as it lies there, by its name in the repository."""
    found = [file for pattern in (*WEIGHT_FILES, "samples/*.png") for file in sorted(model_dir.glob(pattern))]
    files = {file.relative_to(model_dir).as_posix(): file for file in found if file.is_file() and not file.is_symlink()}
    if single_file is not None:
        files[single_file_name(repo_id)] = single_file
    return files


def single_file_name(repo_id: str) -> str:
    """Return what the single file is called there: always the same, so that a later push replaces it."""
    return f"{repo_id.rpartition('/')[2]}.safetensors"


def _upload(api: "HfApi", repo_id: str, info: "ModelInfo", files: dict[str, Path], card: str) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    texts = {"README.md": card, SETTINGS_FILE: settings_json(files["model_index.json"].parent)}
    wanted = files.keys() | texts.keys()
    ours = (*OURS, single_file_name(repo_id))
    stale = sorted(name for name in _names(info) - wanted if any(fnmatch.fnmatchcase(name, own) for own in ours))
    operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
    operations += [CommitOperationAdd(name, text.encode()) for name, text in texts.items()]
    operations += [CommitOperationDelete(name) for name in stale]
    # Against the state that was looked at: what somebody changed meanwhile is told instead of overwritten.
    api.create_commit(repo_id, operations, commit_message="Upload the model", parent_commit=info.sha)


def _refused(repo_id: str, error: "HfHubHTTPError") -> ExportError:
    status = error.response.status_code
    reasons = {
        401: ("The Hub does not know this HF_TOKEN.", "It is mistyped, or was revoked.", "Make a new one."),
        403: (
            f"This HF_TOKEN may not write to {repo_id}.", "It may only read, or the owner is another one.",
            "Make a token that may write, at huggingface.co/settings/tokens.",
        ),
        409: (f"{repo_id} is being changed by somebody else.", "Nothing was uploaded over it.", "Try again."),
        412: (f"{repo_id} was changed meanwhile.", "Nothing was uploaded over it.", "Look at it, then try again."),
        413: ("The Hub has no more room for this account.", "Its quota is used up.", "Delete something there."),
        429: ("The Hub asks to wait.", "There were too many requests.", "Try again in a while."),
    }  # fmt: skip
    # The client's words come on several lines.
    words = " ".join(quoted(error).split())
    what, why, todo = reasons.get(status, ("The Hub refused the upload.", words, "Try again in a while."))
    return ExportError(what, why, todo)
