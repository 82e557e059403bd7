"""The user's notes on a run, as text in the run's folder."""

from dreambooth.durable import write_text
from dreambooth.errors import RunFolderError, TextFileError
from dreambooth.formats.text_files import read_text
from dreambooth.records.workspace import RunFolder

MAX_NOTES_CHARS = 10_000


def read_notes(run: RunFolder) -> str:
    """Return the notes on a run; empty if there are none, or they cannot be read."""
    try:
        return read_text(run.notes_path, 4 * MAX_NOTES_CHARS) if run.notes_path.is_file() else ""
    except (OSError, TextFileError):
        return ""


def keep_notes(run: RunFolder, text: str) -> None:
    """Write the notes on a run, or remove them if they are empty; raises RunFolderError if they are too long."""
    if len(text) > MAX_NOTES_CHARS or "\0" in text:
        raise RunFolderError("The notes are too long.", f"At most {MAX_NOTES_CHARS} characters are kept.", "")
    if not run.config_path.exists():
        raise RunFolderError(f"There is no run {run.name}.", "Its folder is gone.", "Choose another run.")
    if text.strip():
        write_text(run.notes_path, text)
    else:
        run.notes_path.unlink(missing_ok=True)
