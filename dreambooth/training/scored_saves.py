"""Scores a run during the training: probe images at every save, scored by the installed encoders."""

import dataclasses
from collections.abc import Callable
from typing import Any

from dreambooth.config.training import TrainingConfig
from dreambooth.events import Notice, PhaseProgress
from dreambooth.models.base import Base
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import RunFolder
from dreambooth.scoring.encoders import Examiner, examiner_for
from dreambooth.scoring.figures import Reference
from dreambooth.scoring.probes import keep_scores, make_probes, probed_steps, probes_of, reference_of, update_scores
from dreambooth.scoring.recommendation import is_past_best
from dreambooth.scoring.records import RunScores


class SavesScorer:
    """Makes the probe images of a step and scores it; inactive in a run without samples or probes.

    Encoders run on the CPU: the device has no memory to spare for them, and a save makes a dozen images.
    """

    def __init__(
        self,
        config: TrainingConfig,
        run: RunFolder,
        base: Base,
        manager: ModelManager,
        report: Callable[[Any], None],
    ) -> None:
        self._config, self._run, self._base = config, run, base
        self._manager, self._report = manager, report
        self._examiner: tuple[Examiner | None] | None = None
        self._reference: Reference | None = None
        self._scores: RunScores | None = None
        self.is_on = config.num_probe_pictures > 0

    def make(self, step: int) -> None:
        """Make the probe images with the current models, which must be on the device, unless they exist."""
        if not self.is_on:
            return
        make_probes(
            dataclasses.replace(self._base, name=f"{self._run.name}/{step}"), self._run, step, self._config,
            probes_of(self._config.concepts, self._config.num_probe_images),
            autocast_dtype=self._manager.autocast_dtype,
            on_picture=lambda done, total: self._report(PhaseProgress("scores", done, total)),
        )  # fmt: skip

    def score(self) -> RunScores | None:
        """Score the steps that have images, and write the run's scores."""
        if not self.is_on:
            return None
        if self._examiner is None:
            self._examiner = (examiner_for(is_toy=self._base.card.is_toy, download=False),)
        if self._reference is None and 0 in probed_steps(self._run):
            self._reference = reference_of(self._run, self._config)
        self._scores = update_scores(self._run, self._config, self._examiner[0], self._reference)
        return self._scores

    def write(self) -> None:
        """Rewrite the known scores, because other models are available for the recommendation."""
        if self._scores is not None:
            keep_scores(self._run, self._scores)

    def is_past_best(self) -> bool:
        """Return whether none of the newest saves improved on an earlier one."""
        return self._scores is not None and is_past_best(self._scores.steps)

    def report_recommendation(self) -> None:
        """Report the recommended step, at the end of a run."""
        scores = self.score()
        found = scores.recommended(self._run.steps()) if scores else None
        if found is not None:
            self._report(Notice(found.why))
        elif scores is not None and scores.note:
            self._report(Notice(scores.note))
