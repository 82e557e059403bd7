"""The only reader of the environment and of `.env`.

All other modules are passed a `Settings`, or the one value they need.
"""

import contextlib
import importlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from dreambooth.config.limits import as_written, token_problem, user_path
from dreambooth.device.hardware import default_num_threads
from dreambooth.errors import STARS, ConfigError, FieldProblem, hide
from dreambooth.formats.text_files import read_text

DEFAULT_PORT = 7860
FOR_LIBRARIES = ("HF_ENDPOINT", "GRADIO_ROOT_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
SPACE_STORAGE = Path("/data")
DRIVE_FOLDER = Path("/content/drive/MyDrive/DreamBooth")
HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class Secret:
    """A text that prints and formats as asterisks, and is masked in every error; see `reveal`."""

    __slots__ = ("_hidden",)

    def __init__(self, text: str) -> None:
        self._hidden = text
        hide(text)

    def reveal(self) -> str:
        """Return the text itself, for the one call that needs it."""
        return self._hidden

    def __str__(self) -> str:
        return STARS

    def __repr__(self) -> str:
        return STARS

    def __format__(self, specification: str) -> str:
        return STARS

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: object) -> "Secret":
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is never pickled: it must not reach a file or another process")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._hidden == other._hidden

    def __hash__(self) -> int:
        return hash(self._hidden)


@dataclass(frozen=True)
class Settings:
    """The data folder, access and address of the page, and the Hub token; nothing here belongs to a single run."""

    data_dir: Path
    token: Secret | None = None
    auth: tuple[str, Secret] | None = None
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    on_space: bool = False
    on_colab: bool = False
    names: tuple[str, ...] = ()
    space_id: str = ""
    drive_dir: Path | None = None
    zero_gpu: bool = False
    accelerator: str = ""

    @property
    def hub_token(self) -> str | None:
        """The Hub token as libraries take it, None without one."""
        return self.token.reveal() if self.token else None


def load_settings(env: Mapping[str, str] | None = None, dotenv: Path | None = None) -> Settings:
    """Return the settings of the environment, which takes precedence, and `.env`; raises ConfigError with all mistakes.

    With `env` given, only that mapping and the given `dotenv` file count: no Colab secret and no Hub login.
    """
    if env is None:
        # huggingface_hub reads it when imported, and would send its servers a list of what is installed.
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    values = _dotenv_values(dotenv or (Path(".env") if env is None else None))
    values |= {name: text for name, text in (os.environ if env is None else env).items() if text.strip()}
    if env is None:
        # Libraries that read these only from the environment.
        os.environ.update({name: values[name] for name in FOR_LIBRARIES if name in values})
        if not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & values.keys():
            os.environ["OMP_NUM_THREADS"] = str(default_num_threads())
    on_space, on_colab = "SPACE_ID" in values, "COLAB_RELEASE_TAG" in values
    problems = _endpoint_problems(values.get("HF_ENDPOINT"))
    settings = Settings(
        data_dir=_data_dir(values.get("DREAMBOOTH_HOME"), on_space, problems),
        # The Hub's client cannot even be imported with an invalid address.
        token=_token(values, on_colab, problems, own_login=env is None and not problems),
        auth=_auth(values.get("DREAMBOOTH_AUTH"), problems),
        # A Space only shows servers that listen on all addresses.
        host=values.get("DREAMBOOTH_HOST", "0.0.0.0" if on_space else "127.0.0.1").strip(),
        port=_port(values.get("DREAMBOOTH_PORT"), problems),
        on_space=on_space,
        on_colab=on_colab,
        names=_names(values.get("DREAMBOOTH_NAMES"), values.get("SPACE_HOST"), problems),
        space_id=values.get("SPACE_ID", "").strip(),
        drive_dir=_drive_dir(values.get("DREAMBOOTH_DRIVE")),
        # A Space's hardware: `none`, `t4`, ...
        zero_gpu=values.get("SPACES_ZERO_GPU", "").strip().lower() in ("1", "true", "t", "yes"),
        accelerator=values.get("ACCELERATOR", "").strip().lower(),
    )
    problems += _certificate_problems(values.get("SSL_CERT_FILE"))
    if problems:
        raise ConfigError(problems)
    return settings


def _dotenv_values(path: Path | None) -> dict[str, str]:
    if path is None or not path.is_file():
        return {}
    from dotenv import dotenv_values

    values = dotenv_values(stream=io.StringIO(read_text(path)))
    return {name: text for name, text in values.items() if text and text.strip()}


def _data_dir(text: str | None, on_space: bool, problems: list[FieldProblem]) -> Path:
    if text is None:
        # Without paid storage a Space has no /data, or one that cannot be written to.
        kept = on_space and SPACE_STORAGE.is_dir() and os.access(SPACE_STORAGE, os.W_OK)
        return SPACE_STORAGE if kept else Path("outputs").absolute()
    named = user_path(text.strip())
    folder = named.absolute()
    if str(named).startswith("~"):
        problems.append(FieldProblem("DREAMBOOTH_HOME", f"is {as_written(text)}: there is no such home folder here."))
    elif folder.exists() and not folder.is_dir():
        problems.append(FieldProblem("DREAMBOOTH_HOME", f"{folder} is a file; name a folder."))
    return folder


def _drive_dir(text: str | None) -> Path | None:
    """Return the folder on Google Drive: the default one for a plain yes, else the given one."""
    word = (text or "").strip()
    if word.lower() in ("", "0", "no", "false", "off"):
        return None
    return DRIVE_FOLDER if word.lower() in ("1", "yes", "true", "on") else user_path(word).absolute()


def _auth(text: str | None, problems: list[FieldProblem]) -> tuple[str, Secret] | None:
    if text is None:
        return None
    user, _, password = text.strip().partition(":")
    if not user or not password:
        # The value is not repeated: it may be a password.
        problems.append(FieldProblem("DREAMBOOTH_AUTH", "must be a user and a password with a colon between them."))
        return None
    return user, Secret(password)


def _port(text: str | None, problems: list[FieldProblem]) -> int:
    if text is None:
        return DEFAULT_PORT
    if re.fullmatch("[0-9]{1,5}", text.strip()) and 1 <= int(text) <= 65535:
        return int(text)
    problems.append(
        FieldProblem("DREAMBOOTH_PORT", f"must be a number from 1 to 65535, not {as_written(text.strip())}.")
    )
    return DEFAULT_PORT


def _names(text: str | None, space_host: str | None, problems: list[FieldProblem]) -> tuple[str, ...]:
    names = [name.strip().lower() for name in (text or "").split(",") if name.strip()]
    wrong = [name for name in names if not HOST_NAME.fullmatch(name)]
    if wrong:
        message = f"must be names such as studio.example.org with commas between them, not {as_written(wrong[0])}."
        problems.append(FieldProblem("DREAMBOOTH_NAMES", message))
    return (*names, *([space_host.strip().lower()] if space_host else []))


def _endpoint_problems(text: str | None) -> list[FieldProblem]:
    """Return what is wrong with the address of a Hub mirror, which would otherwise fail only after hours."""
    with contextlib.suppress(ValueError):  # a bracket that is not closed
        address = urlsplit((text or "https://huggingface.co").strip())
        if address.scheme in ("http", "https") and address.netloc:
            return []
    return [FieldProblem("HF_ENDPOINT", f"must be an address such as https://huggingface.co, not {as_written(text)}.")]


def _certificate_problems(name: str | None) -> list[FieldProblem]:
    """Return what is wrong with the certificate file that every connection of this process reads."""
    if name is None:
        return []
    import ssl

    try:
        ssl.create_default_context(cafile=name.strip())
    except ssl.SSLError:
        return [FieldProblem("SSL_CERT_FILE", f"{as_written(name)} holds no certificates that can be read.")]
    except OSError as error:
        return [FieldProblem("SSL_CERT_FILE", f"{as_written(name)} cannot be read: {error.strerror}.")]
    return []


@contextlib.contextmanager
def bypassing_proxies(addresses: Iterable[str]) -> Iterator[None]:
    """Have this process's requests to these hosts, `*` for all, bypass proxies in the block."""
    names = ("no_proxy", "NO_PROXY")
    before = {name: os.environ[name] for name in names if name in os.environ}
    present = next(iter(before.values()), "").split(",")
    text = ",".join(filter(None, dict.fromkeys([*addresses, *present])))
    os.environ.update({name: text for name in names})
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def keep_to_itself(folder: Path) -> None:
    """Have this process and its children put temporary files only into `folder`, and disable telemetry."""
    # Gradio and huggingface_hub read these when imported: there are no arguments for them.
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder),
        "TMPDIR": str(folder),
        "GRADIO_ANALYTICS_ENABLED": "False",
        # After every event Gradio summarizes its last thousand, for an analytics page that is off here.
        "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
    }
    tempfile.tempdir = str(folder)


def _token(
    values: Mapping[str, str], on_colab: bool, problems: list[FieldProblem], *, own_login: bool
) -> Secret | None:
    text: str | None = values.get("HF_TOKEN")
    if not text and own_login and on_colab:
        text = _colab_secret("HF_TOKEN")
    if not text and own_login:
        from huggingface_hub import get_token

        text = get_token()
    if not text or not text.strip():
        return None
    token = Secret(text.strip())
    if problem := token_problem(text.strip()):
        problems.append(FieldProblem("HF_TOKEN", problem))
    return token


def _colab_secret(name: str) -> str | None:
    """Return a secret of the notebook, None if it does not exist or access was not granted."""
    if "google.colab" not in sys.modules:
        # Only the notebook's own kernel can ask; a process started by it must be passed the variable.
        return None
    userdata = importlib.import_module("google.colab.userdata")
    try:
        secret: str | None = userdata.get(name)
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError, userdata.TimeoutException):
        return None
    return secret
