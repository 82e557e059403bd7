"""The models of a data folder that can generate, each named with its family and method."""

import functools
from pathlib import Path

from dreambooth.config.training import SD15, SDXL_BASE
from dreambooth.formats.layout import Layout, step_contents
from dreambooth.models.base import STARTER, known_layout
from dreambooth.records.workspace import Workspace


def listed_models(workspace: Workspace) -> list[tuple[str, str]]:
    """Return (label, value) of every model, newest steps first: `dog-3, step 800 (LoRA, SD 1.x)`."""
    folders = [run.step_folder(step) for run in workspace.runs() for step in reversed(run.steps())]
    steps = [(f"{one.parent.name}, step {one.name} ({step_contents(one)})", str(one)) for one in folders]
    own = sorted(entry for entry in workspace.models_dir.iterdir() if not entry.name.startswith("."))
    bases = [(_base_label(entry), str(entry)) for entry in own]
    return [
        *steps,
        ("starter (toy)", STARTER),
        *bases,
        ("Stable Diffusion 1.5", SD15),
        ("Stable Diffusion XL 1.0", SDXL_BASE),
    ]


def _base_label(place: Path) -> str:
    layout = _layout_of_own(place, place.stat().st_mtime_ns)
    return place.name if layout is None else f"{place.name} ({layout.short_title})"


@functools.lru_cache(maxsize=500)
def _layout_of_own(place: Path, modified_ns: int) -> Layout | None:
    # It reads a checkpoint's names, and a page asks for the list once a second.
    return known_layout(str(place))
