"""The time left: only from this process's steps, only after enough of them, with the saves that are still to come."""

from dreambooth.config.counts import num_saves_left
from dreambooth.config.training import TrainingConfig
from dreambooth.events import ModelSaved, PhaseProgress
from dreambooth.records.eta import NUM_STEPS_BEFORE_ETA, NUM_WARM_UP_STEPS, Eta, PhaseTime, TimeLeft

CONFIG = TrainingConfig(save_interval=20, max_train_steps=100)


class Run:
    """A run whose clock is moved by hand."""

    def __init__(self, config: TrainingConfig | None = CONFIG, step: int = 0) -> None:
        self.eta, self.now_s, self.step = Eta(config), 1000.0, step
        self.left = self.training()

    def training(self) -> TimeLeft | None:
        self.left = self.eta(PhaseProgress("training", self.step, 100), self.now_s)
        return self.left

    def steps(self, count: int, each_s: float) -> TimeLeft | None:
        for _ in range(count):
            self.now_s, self.step = self.now_s + each_s, self.step + 1
            self.training()
        return self.left

    def save(self, seconds: float) -> None:
        self.eta(PhaseProgress("saving"), self.now_s)
        self.eta(ModelSaved(self.step), self.now_s + seconds / 2)
        self.eta(PhaseProgress("samples"), self.now_s + seconds / 2)
        self.now_s += seconds
        self.training()


def test_it_waits_for_enough_steps_and_leaves_the_first_ones_out() -> None:
    run = Run()
    run.steps(NUM_WARM_UP_STEPS, each_s=60)
    assert run.steps(NUM_STEPS_BEFORE_ETA - 1, each_s=2) is None
    left = run.steps(1, each_s=2)
    assert left == TimeLeft(2.0 * (100 - run.step), with_saves=False)


def test_saves_seen_are_counted_for_those_to_come_and_do_not_slow_the_steps() -> None:
    run = Run()
    run.steps(20, each_s=1)
    run.save(30)
    left = run.steps(1, each_s=1)
    # Steps 40, 60, 80 and the last one are still saved.
    assert left == TimeLeft(79.0 + 4 * 30, with_saves=True)


def test_a_resumed_run_knows_only_its_own_steps() -> None:
    run = Run(step=60)
    assert run.left is None
    left = run.steps(NUM_WARM_UP_STEPS + NUM_STEPS_BEFORE_ETA, each_s=3)
    assert left == TimeLeft(3.0 * (100 - run.step), with_saves=False)


def test_what_comes_by_the_clock_counts_in_proportion() -> None:
    run = Run(TrainingConfig(save_interval=1000, max_train_steps=100))
    run.steps(50, each_s=1)
    run.eta(PhaseProgress("saving"), run.now_s)
    run.now_s += 10
    run.training()
    left = run.steps(1, each_s=1)
    assert left is not None
    # 49 steps, and 10 s for every 51 of them; no model was saved yet, and the last one is to come.
    assert abs(left.seconds - (49 + 49 * 10 / 51)) < 1e-6
    assert not left.with_saves


def test_the_saves_to_come() -> None:
    assert num_saves_left(CONFIG, 0, 100) == 5
    assert num_saves_left(CONFIG, 20, 100) == 4
    assert num_saves_left(CONFIG, 99, 100) == 1
    assert num_saves_left(CONFIG, 100, 100) == 0
    assert num_saves_left(TrainingConfig(save_interval=20, save_min_steps=50), 0, 100) == 3


def test_class_pictures_are_timed_by_those_made_now_and_no_longer_than_they_are_made() -> None:
    phase = PhaseTime()
    phase(PhaseProgress("class images", 20, 50), 1000.0)
    assert phase.seconds_left is None, "20 were there already"
    phase(PhaseProgress("class images", 30, 50), 1040.0)
    assert phase.seconds_left == 80.0
    phase(PhaseProgress("latents", 0, 5), 1120.0)
    assert phase.seconds_left is None
    phase(PhaseProgress("latents", 5, 5), 1130.0)
    assert phase.seconds_left is None, "nothing is left of it"
    phase(PhaseProgress("training", 3, 10), 1140.0)
    assert phase.seconds_left is None, "the steps are timed by `Eta`"


def test_each_concept_s_class_pictures_are_timed_anew() -> None:
    phase = PhaseTime()
    for done, now_s in ((0, 0.0), (50, 400.0), (0, 401.0)):
        phase(PhaseProgress("class images", done, 50), now_s)
    assert phase.seconds_left is None, "none of the second concept's is made yet"
    phase(PhaseProgress("class images", 4, 50), 441.0)
    assert phase.seconds_left == 460.0
    there = PhaseTime()
    for done, now_s in ((50, 0.0), (0, 1.0), (4, 41.0)):
        there(PhaseProgress("class images", done, 50), now_s)
    assert there.seconds_left == 460.0


def test_the_time_left_of_class_pictures_falls_while_a_batch_of_them_is_made() -> None:
    phase = PhaseTime()
    phase(PhaseProgress("class images", 0, 12), 0.0)
    phase(PhaseProgress("class images", 4, 12), 40.0)
    told = [phase.seconds_left]
    for now_s in (50.0, 60.0, 75.0, 500.0):
        phase(PhaseProgress("class images", 4, 12), now_s)
        told.append(phase.seconds_left)
    assert told == [80.0, 70.0, 60.0, 45.0, 0.0]
