"""The line above the tabs: the device, what is running, where files are stored."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from dreambooth.device.torch_build import install_line
from dreambooth.runs.view import RunView


@dataclass(frozen=True)
class Doing:
    """What the app is doing: the current or next run, how many are waiting, and whether images are being generated.

    Before the first answer of the server it is unknown.
    """

    view: RunView | None = None
    num_waiting: int = 0
    makes_pictures: bool = False
    is_known: bool = True


def header(device: str, doing: Doing, data_dir: Path, keeps_files: bool, unused_card: str = "") -> str:
    """Return the line above the tabs: device, what is running, where files are stored, how to use an idle card."""
    warning = "" if keeps_files else " (deleted when this machine restarts: download what you need)"
    kept = " (kept)" if keeps_files else ""
    where = f"Files in {data_dir}{kept}{warning}"
    busy = doing.view is not None or doing.makes_pictures or not doing.is_known
    chips = [
        ("db-device", device),
        ("db-doing db-live" if busy else "db-doing", _doing_text(doing)),
        ("db-where" if keeps_files else "db-where db-alarm", where),
    ]
    return (
        "<div class='db-header'><h1>DreamBooth</h1><div class='db-chips'>"
        + "".join(f"<span class='{kind}'>{escape(text)}</span>" for kind, text in chips)
        + "</div></div>"
        + (_unused_card_notice(unused_card) if unused_card else "")
    )


def _unused_card_notice(card: str) -> str:
    """Return what to do if torch is a CPU build beside an NVIDIA card."""
    return (
        f"<p class='db-unused-card' role='status'>Your {escape(card)} is not used, because this torch is a CPU build. "
        f"Stop the app, run this line and start it again: <code>{escape(install_line())}</code></p>"
    )


def _doing_text(doing: Doing) -> str:
    """Return one or two words: the run's phase is in the status line below."""
    if doing.view is None:
        return "Connecting..." if not doing.is_known else "Making pictures" if doing.makes_pictures else "Idle"
    return "Training" + (f" \u00b7 {doing.num_waiting} waiting" if doing.num_waiting else "")
