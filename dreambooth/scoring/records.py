"""A run's scores in `.run/scores.json`; readable without any of the libraries that computed them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dreambooth.durable import write_json
from dreambooth.formats.json_file import read_object
from dreambooth.records.workspace import RunFolder
from dreambooth.scoring.recommendation import Recommendation, StepScores, recommended


@dataclass(frozen=True)
class RunScores:
    """All scored steps of a run, the base model (step 0) first, and the real photos compared with each other.

    `examiner` says what judged the images; empty if nothing could and there are only the losses at fixed noise.
    `num_probes` is how many subject images each step has.
    """

    examiner: str
    steps: tuple[StepScores, ...] = ()
    ceiling: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    num_probes: int = 0

    @property
    def base(self) -> StepScores | None:
        """Return the scores of the base model."""
        return next((one for one in self.steps if one.step == 0), None)

    def recommended(self, available: Sequence[int] | None = None) -> Recommendation | None:
        """Return the recommended step among those whose model still exists."""
        found, last = recommended(self.steps, available), max(available or [0])
        if found is None or last <= max(one.step for one in self.steps):
            return found
        return dataclasses.replace(found, why=f"{found.why} Step {last}, the last, has not been scored yet.")


def examiner_title(name: str) -> str:
    """Return an examiner's display name; its name in files does not change."""
    return {"the starter's judge": "the starter's own classifier", "pixels": "pixels alone"}.get(name, name)


def write_scores(run: RunFolder, scores: RunScores) -> None:
    """Write the scores with the recommendation that follows from them."""
    found = scores.recommended(run.steps() or None)
    values = {
        "examiner": scores.examiner,
        "note": scores.note,
        "num_probes": scores.num_probes,
        "recommended_step": found.step if found else None,
        "why": found.why if found else "",
        "ceiling": dict(scores.ceiling),
        "steps": [dataclasses.asdict(one) for one in scores.steps],
    }
    write_json(run.scores_path, values)


def read_scores(run: RunFolder) -> RunScores | None:
    """Return a run's scores, None if there are none or they cannot be read."""
    try:
        values = read_object(run.scores_path)
        steps = tuple(_step(dict(one)) for one in values["steps"])
        ceiling = {str(name): float(value) for name, value in dict(values["ceiling"]).items()}
        num_probes = int(_number(values.get("num_probes", 0)))
        return RunScores(str(values["examiner"]), steps, ceiling, str(values.get("note", "")), num_probes)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _step(values: dict[str, object]) -> StepScores:
    figures = {name: None if values.get(name) is None else _number(values[name]) for name in FIGURES}
    measures = values.get("measures", {})
    if not isinstance(measures, dict):
        raise TypeError("measures must be an object")
    return StepScores(
        int(_number(values["step"])),
        measures={str(name): _number(value) for name, value in measures.items()},
        **figures,
    )


FIGURES = ("fidelity", "prompt", "drift")


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("figures are numbers")
    return float(value)
