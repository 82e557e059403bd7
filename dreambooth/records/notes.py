"""What a user notes about a run, as text in the run's folder."""

from dreambooth.durable import write_text
from dreambooth.errors import RunFolderError, TextFileError
from dreambooth.formats.text_files import read_text
from dreambooth.records.workspace import RunFolder

MAX_NOTES_CHARS = 10_000


def read_notes(run: RunFolder) -> str:
    """Return the notes of a run; nothing where there are none, or none that can be read."""
    try:
        return read_text(run.notes_path, 4 * MAX_NOTES_CHARS) if run.notes_path.is_file() else ""
    except (OSError, TextFileError):
        return ""


def keep_notes(run: RunFolder, text: str) -> None:
    """Write the notes of a run, or remove them where there are no words; raises RunFolderError for too many."""
    if len(text) > MAX_NOTES_CHARS or "\0" in text:
        raise RunFolderError("The notes are too long.", f"At most {MAX_NOTES_CHARS} characters are kept.", "")
    if not run.config_path.exists():
        raise RunFolderError(f"There is no run {run.name}.", "Its folder is gone.", "Choose another run.")
    if text.strip():
        write_text(run.notes_path, text)
    else:
        run.notes_path.unlink(missing_ok=True)
