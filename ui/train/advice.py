"""The recommended steps, preselected in the lists, with the reason beside the selection."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreambooth.records.workspace import RunFolder
from dreambooth.scoring.recommendation import Recommendation
from dreambooth.scoring.records import read_scores
from ui.boundary import Services
from ui.render import advice_text


class Advice:
    """The recommended steps of all runs; unchanged scores are not read again."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._known: dict[Path, tuple[Any, Recommendation | None]] = {}

    def pick(self, run: RunFolder) -> Recommendation | None:
        """Return the recommended step of a run; None if its scores cannot tell or there are none."""
        path, steps = run.scores_path, run.steps()
        standing = (path.stat().st_mtime_ns if path.exists() else 0, steps)
        known, pick = self._known.get(run.path, (None, None))
        if known != standing:
            scores = read_scores(run)
            pick = scores.recommended(steps) if scores else None
            self._known[run.path] = (standing, pick)
        return pick

    def models(self) -> tuple[str, ...]:
        """Return the folders of the recommended steps, newest run first; a run in progress has none yet."""
        active = self._services.jobs.active()
        picks = ((run, self.pick(run)) for run in self._services.workspace.runs() if run.name != active)
        return tuple(str(run.step_folder(pick.step)) for run, pick in picks if pick and pick.step is not None)

    def text_for(self, model: str | None) -> str:
        """Return the text beside the selection of a model: its run's recommended step, and why."""
        folder = Path(model or "")
        run = next((run for run in self._services.workspace.runs() if run.path == folder.parent), None)
        if run is None or not folder.name.isdecimal():
            return ""
        is_over = run.name != self._services.jobs.active()
        return advice_text(self.pick(run), int(folder.name), len(run.steps()), is_over=is_over)


def preselected(
    models: Sequence[str], before: Sequence[str], advised: Sequence[str], advised_before: Sequence[str]
) -> str | None:
    """Return the model to select in a page's list, None to leave the selection.

    A step that was just saved is what the user waits for; once its run is scored and over, its recommended step is.
    """
    new = [model for model in models if model not in before]
    if new:
        return next((one for one in advised if Path(one).parent == Path(new[0]).parent), new[0])
    return next((one for one in advised if one not in advised_before and one in models), None)
