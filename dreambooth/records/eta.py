"""Time left in a run, from what this process has observed of it and nothing else.

Steps, and the pauses between them for saves, samples and exact states, are timed separately: an average over both would
jump at every save.
"""

import collections
from dataclasses import dataclass

from dreambooth.config.counts import num_saves_left
from dreambooth.config.training import TrainingConfig
from dreambooth.events import Event, ModelSaved, PhaseProgress

# The first steps warm caches and compile; an estimate from them would be wrong by a factor.
NUM_WARM_UP_STEPS = 2
NUM_STEPS_BEFORE_ETA = 10
NUM_STEPS_REMEMBERED = 50


@dataclass(frozen=True)
class TimeLeft:
    """Seconds until the run is done; without `with_saves` no save was observed yet, and theirs are not included."""

    seconds: float
    with_saves: bool


class PhaseTime:
    """Observes the phases before the steps and estimates the time left of the current one."""

    def __init__(self) -> None:
        self._phase = ""
        self._first = self._last = (0, 0.0)
        self.seconds_left: float | None = None

    def __call__(self, event: Event, now_s: float) -> None:
        """Take an event into account; pieces that existed when the phase began took no time and are not counted."""
        if not isinstance(event, PhaseProgress):
            return
        if event.phase != self._phase or event.done < self._last[0]:
            # The latents of class images, after those of photos, count anew.
            self._phase, self._first, self._last = event.phase, (event.done, now_s), (event.done, now_s)
        elif event.done > self._last[0]:
            self._last = (event.done, now_s)
        num_done, num_left = self._last[0] - self._first[0], event.total - event.done
        is_timed = event.phase in ("class images", "latents") and num_done > 0 and num_left > 0
        # Images come in batches: the pace is that of the last arrival, and the time waited since is subtracted.
        pace_s = (self._last[1] - self._first[1]) / num_done if is_timed else 0.0
        self.seconds_left = max(pace_s * num_left - (now_s - self._last[1]), 0.0) if is_timed else None


class Eta:
    """Observes a run's events and estimates its time left."""

    def __init__(self, config: TrainingConfig | None = None) -> None:
        self._config = config
        self._num_steps_seen = 0
        self._step_times_s: collections.deque[float] = collections.deque(maxlen=NUM_STEPS_REMEMBERED)
        self._last: tuple[int, float] | None = None
        self._pause_began_s: float | None = None
        self._pause_s = 0.0
        self._saved = False
        self._save_pauses_s: list[float] = []
        self._other_pauses_s = self._stepping_s = 0.0

    def __call__(self, event: Event, now_s: float) -> TimeLeft | None:
        """Take an event into account, and return the time left after it, None while it is too early to say."""
        # A model written meanwhile is reported between steps; its pause was the copy of its weights.
        if isinstance(event, ModelSaved) and self._pause_began_s is not None:
            self._saved = True
        if isinstance(event, PhaseProgress):
            self._saved = self._saved or event.phase == "copying"
            if event.phase == "lent":
                # A one-time pause: the next step is timed from its end.
                self._last = self._pause_began_s = None
                return None
            if event.phase == "training":
                self._at_step(event.done, now_s)
                return self._time_left(event.done, event.total)
            if self._last is not None and self._pause_began_s is None:
                self._pause_began_s = now_s
        return None

    def _at_step(self, step: int, now_s: float) -> None:
        if self._pause_began_s is not None:
            self._pause_s += now_s - self._pause_began_s
            self._pause_began_s = None
        elif self._last is not None and step == self._last[0] + 1:
            self._end_pause()
            self._num_steps_seen += 1
            if self._num_steps_seen > NUM_WARM_UP_STEPS:
                self._step_times_s.append(now_s - self._last[1])
            self._stepping_s += now_s - self._last[1]
        self._last = (step, now_s)

    def _end_pause(self) -> None:
        """Record the pause before this step: one with a saved model comes as often as models are saved."""
        if self._saved:
            self._save_pauses_s.append(self._pause_s)
        else:
            self._other_pauses_s += self._pause_s
        self._pause_s, self._saved = 0.0, False

    def _time_left(self, step: int, num_steps: int) -> TimeLeft | None:
        if len(self._step_times_s) < min(NUM_STEPS_BEFORE_ETA, max(num_steps - NUM_WARM_UP_STEPS, 1)):
            return None
        pace_s = sum(self._step_times_s) / len(self._step_times_s)
        stepping_s = pace_s * (num_steps - step)
        # What comes by time, such as exact states, is proportional.
        others_s = stepping_s * self._other_pauses_s / self._stepping_s if self._stepping_s else 0.0
        saves = num_saves_left(self._config, step, num_steps) if self._config else 0
        if saves and not self._save_pauses_s:
            return TimeLeft(stepping_s + others_s, with_saves=False)
        each_s = sum(self._save_pauses_s) / len(self._save_pauses_s) if self._save_pauses_s else 0.0
        return TimeLeft(stepping_s + others_s + saves * each_s, with_saves=True)


def in_words(seconds: float) -> str:
    """Return a duration in words: `40 s`, `6 min`, `1 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
