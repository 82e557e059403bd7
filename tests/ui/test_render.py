"""What the page says, from runs and errors made up by hand."""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from dreambooth.config.concepts import Concept
from dreambooth.config.fields import GROUP_TITLES, describe
from dreambooth.config.training import TrainingConfig
from dreambooth.device.hardware import Device
from dreambooth.errors import ConfigError, DreamBoothError, FieldProblem
from dreambooth.events import FixedNoiseLosses, PhaseName, StatusChanged, StepLoss
from dreambooth.runs.view import RunView
from dreambooth.scoring.bleed import BleedReport, PromptChange
from dreambooth.scoring.recommendation import Recommendation, StepScores
from dreambooth.scoring.records import RunScores
from ui import render
from ui.fields import form_infos
from ui.header import Doing, header
from ui.status_line import line_text
from ui.train import panel as run_panel
from ui.train import progress, runs, steps
from ui.train.advice import preselected
from ui.train.loss_plot import loss_plot, smoothed, thinned

VIEW = RunView(
    name="zwx-dog", path=Path("runs/zwx-dog"), status="running", step=30, total_steps=120, phase="training",
    phase_done=30, phase_total=120, seconds_left=360.0, saves_in_time=True, phase_seconds_left=None,
    error=None, queue_place=None, losses=[], log_tail="", samples={}, steps=[], resume_step=None, silent_s=0.0,
    config=None,
)  # fmt: skip


def run(**changes: Any) -> RunView:
    """Return a run at step 30 of 120, changed as given."""
    return dataclasses.replace(VIEW, **changes)


def losses(values: list[float]) -> list[StepLoss]:
    """Return one loss per step, from step 1 on."""
    return [StepLoss(step, value, value, None, 1e-6) for step, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "Training: step 30 of 120"),
        ({"phase": "class images", "phase_done": 12, "phase_total": 50}, "Generating class images: 12 of 50"),
        ({"phase": "loading", "phase_total": 0}, "Loading the base model"),
        ({"phase": "scores", "phase_done": 3, "phase_total": 10}, "Scoring the saved step: 3 of 10"),
        (
            {"phase": "scores", "step": 0, "phase_done": 3, "phase_total": 10},
            "Scoring the base model, for comparison: 3 of 10",
        ),
        ({"phase": "", "phase_total": 0}, "Starting"),
        ({"status": "queued", "queue_place": 2, "queued_after": ["a", "b"]}, "Queued, position 2, after a and b"),
        ({"status": "queued"}, "Starting"),
        ({"status": "done", "step": 120}, "Finished after 120 steps"),
        ({"status": "stopped"}, "Stopped after 30 of 120 steps"),
        ({"status": "failed"}, "Failed at step 30 of 120"),
        ({"status": "interrupted"}, "Interrupted at step 30; the saved steps can be used"),
    ],
)
def test_phase_text(changes: dict[str, Any], text: str) -> None:
    assert render.phase_text(run(**changes)) == text


def test_one_bar_goes_through_all_phases_and_never_back() -> None:
    config = TrainingConfig(concepts=(Concept("photo of zwx dog", "photos", "photo of dog"),), num_class_images=50)
    config = dataclasses.replace(config, with_prior_preservation=True, save_sample_prompt="photo of zwx dog")
    course: list[tuple[Any, ...]] = [("", 0, 0, 0), ("loading", 0, 0, 0)]
    course += [("class images", done, 50, 0) for done in (0, 25, 50)] + [("latents", 0, 90, 0), ("latents", 90, 90, 0)]
    course += [("samples", 0, 4, 0), ("scores", 5, 10, 0), ("training", 0, 600, 0), ("training", 200, 600, 200)]
    course += [("saving", 0, 0, 200), ("samples", 1, 4, 200), ("scores", 0, 10, 200), ("training", 201, 600, 201)]
    shares = [
        progress.whole_share(
            run(config=config, phase=phase, phase_done=done, phase_total=total, step=step, total_steps=600)
        )
        for phase, done, total, step in course
    ]
    assert shares == sorted(shares)
    assert shares[4] > shares[2] > 0, "class images are part of the way"
    assert 0.35 < shares[-1] < 1
    assert progress.whole_share(run(status="done", step=119)) == 1.0
    stopped = run(status="stopped", step=0, phase="class images", phase_done=28, phase_total=50)
    assert progress.whole_share(stopped) == 0, "no step was made, whatever was"
    assert progress.whole_share(run(phase="loading", step=0, total_steps=0)) == 0.0
    assert "aria-valuenow='25'" in render.status_card(run())
    assert "6 min left" in render.status_card(run())


def test_a_finished_run_has_no_time_left() -> None:
    assert render.time_left(run(status="done")) == ""
    assert render.time_left(run(status="interrupted")) == ""
    assert render.time_left(run(seconds_left=None)) == ""


def test_after_the_last_step_no_seconds_are_promised() -> None:
    assert render.time_left(run(step=100, total_steps=100, seconds_left=0.0)) == "saving the final model"
    ending = run(step=100, total_steps=100, seconds_left=0.0, phase="scores")
    assert render.time_left(ending) == "scoring the last save"
    assert render.time_left(dataclasses.replace(ending, phase="samples")) == "making the last samples"


def test_before_the_steps_the_time_left_follows_how_late_the_run_is() -> None:
    config = TrainingConfig(concepts=(Concept("photo of zwx dog", "photos", "photo of dog"),), num_class_images=50)
    loading = run(config=config, step=0, total_steps=100, phase="loading", phase_total=0, elapsed_s=1.0)
    planned_s = progress.planned_seconds_left(loading, 100.0)
    assert planned_s == pytest.approx(100.0)
    late = dataclasses.replace(loading, elapsed_s=60.0)
    assert progress.planned_seconds_left(late, 100.0) > 3 * planned_s
    part = run(config=config, step=0, total_steps=100, phase="latents", phase_done=45, phase_total=90, elapsed_s=80.0)
    share = progress.whole_share(part)
    assert progress.planned_seconds_left(part, 100.0) == pytest.approx(80.0 * (1 - share) / share)
    assert progress.planned_seconds_left(dataclasses.replace(part, elapsed_s=1.0), 100.0) == pytest.approx(
        100.0 * (1 - share)
    )
    slow = dataclasses.replace(part, phase="class images", elapsed_s=1.0, phase_seconds_left=700.0)
    assert progress.planned_seconds_left(slow, 100.0) == 700.0


def test_the_time_left_says_when_it_is_not_known_yet_and_what_is_not_in_it() -> None:
    assert "time left is shown after the first steps" in render.status_card(run(seconds_left=None))
    assert render.time_left(run(saves_in_time=False)) == "6 min left, and the saves"
    class_pictures = run(seconds_left=None, phase="class images", phase_seconds_left=130.0)
    assert "2 min left in this phase" in render.status_card(class_pictures)
    assert "about 8 min left" in render.status_card(class_pictures, whole_s=600.0), "of the whole, where it is known"


def test_a_failed_run_says_what_why_and_what_to_do_and_nothing_is_taken_as_html() -> None:
    error = StatusChanged("failed", "Out of <memory>.", "It needed 11 GB.", "Take the preset `minimum`.")
    card = render.status_card(run(status="failed", error=error))
    assert "Out of &lt;memory&gt;." in card
    assert "It needed 11 GB." in card
    assert "Take the preset `minimum`." in card
    assert "<script>" not in render.log_text("<script>alert(1)</script>")
    assert "<b>" not in render.error_text(DreamBoothError("<b>bold</b>"))
    assert "<i>x" not in line_text(run(name="<i>x"))


def test_all_mistakes_are_listed_at_once() -> None:
    problems = [FieldProblem("max_train_steps", "is 0: it must be at least 1."), FieldProblem("seed", 'is "a".')]
    text = render.error_panel(ConfigError(problems))
    assert "Fix 2 settings to start" in text
    assert "<a href='#field-max_train_steps'>Steps</a> <code>max_train_steps</code> is 0" in text
    assert "<a href='#field-seed'>Seed</a> <code>seed</code> is &quot;a&quot;." in text


def test_header_tells_what_runs_and_where_files_do_not_stay() -> None:
    assert "deleted when this machine restarts" in header("CPU", Doing(), Path("/content/x"), False)
    assert "Making pictures" in header("CPU", Doing(makes_pictures=True), Path("/data"), True)
    kept = header("CPU", Doing(run(), num_waiting=2), Path("/data"), True)
    assert "deleted" not in kept
    assert "/data (kept)" in kept
    assert "Training \u00b7 2 waiting" in kept
    line = line_text(run(), num_waiting=2)
    assert "Training: step 30 of 120 \u00b7 6 min left \u00b7 2 waiting" in line
    assert "href='?tab=train&amp;run=zwx-dog'>zwx-dog</a>" in line
    assert "Connecting" in header("CPU", Doing(is_known=False), Path("/data"), True)


def phases(view: RunView) -> dict[str, str]:
    """Return each phase of the list with how it is shown."""
    return {
        name: kind for kind, name in re.findall(r"<li class='db-(\w+)'[^>]*>([A-Za-z ]+)", progress.phase_list(view))
    }


def test_the_phases_show_what_is_behind_what_is_on_and_what_is_to_come() -> None:
    assert phases(run()) == {
        "Loading": "done", "Class images": "done", "Photos": "done", "Training": "now", "Saving": "next",
        "Samples": "next",
    }  # fmt: skip
    making = run(phase="class images", phase_done=3, phase_total=50)
    assert "Class images 3 of 50</li>" in progress.phase_list(making)
    assert phases(making)["Training"] == "next"
    assert set(phases(run(status="done", phase="samples")).values()) == {"done"}
    cycle = progress.phase_list(run()).partition("db-cycle")[2]
    assert re.findall(r">([A-Z][a-z]+)", cycle) == ["Training", "Saving", "Samples"], "what comes again and again"
    no_prior = run(config=TrainingConfig(with_prior_preservation=False))
    assert "Class images" not in phases(no_prior)
    assert progress.phase_list(run(status="queued")) == ""
    removed = run(status="stopped", step=0, phase="", phase_total=0)
    assert set(phases(removed).values()) == {"next"}, "taken from the queue: nothing was done"
    assert render.phase_text(removed) == "Stopped before its steps"


def test_device_memory_is_told_while_a_run_is_at_work() -> None:
    device = Device("cuda", "Tesla T4", 16 * 2**30, 4 * 2**30)
    assert "Tesla T4: 12.0 of 16.0 GB memory in use" in render.status_card(run(), device)
    assert "Tesla T4" not in render.status_card(run(status="done"), device)
    live = dataclasses.replace(device, load_percent=97, temperature_c=71)
    assert "GB memory in use \u00b7 load 97 % \u00b7 71 \u00b0C" in render.status_card(run(), live)


def test_smoothing_by_hand() -> None:
    # Averages 0.5*2 and 0.5*1+0.5*4, over weights 0.5 and 0.75.
    assert smoothed([2.0, 4.0], weight=0.5) == pytest.approx([2.0, 10 / 3])
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50)


@pytest.mark.parametrize("count", [1, 2, 499, 500, 501, 999, 1000, 1001, 12345])
def test_many_losses_are_thinned_and_the_first_and_last_step_stay(count: int) -> None:
    points = thinned(losses([float(number) for number in range(count)]))
    assert len(points) <= 501
    assert (points[0][0], points[-1][0]) == (1, count)
    assert len({step for step, _, _ in points}) == len(points)


def test_the_plot_has_a_faint_and_a_smoothed_course_and_marks_what_was_saved() -> None:
    drawn = loss_plot(losses([0.5, 0.1, 0.3, 0.2]), 8, [2, 4])
    assert drawn.count("<polyline") == 2
    assert "saved at step 2" in drawn
    assert "aria-label='Loss at step 4: 0.2" in drawn
    assert "<svg" not in loss_plot([], 8)
    assert "nan" not in loss_plot(losses([float("nan"), 0.5, float("inf"), 0.4]), 8)
    assert "<svg" in loss_plot(losses([0.0, 0.0]), 2)


def test_samples_begin_before_training() -> None:
    found = {step: [Path(f"{step}/{name}.png") for name in "ab"] for step in (100, 0)}
    shown = [(path.as_posix(), caption) for path, caption in render.sample_items(found)]
    assert shown == [
        ("0/a.png", "before"), ("100/a.png", "step 100"), ("0/b.png", "before"), ("100/b.png", "step 100")
    ], "one seed after the other, over the steps"  # fmt: skip
    assert render.sample_columns(found) == 2
    prompts = ["a cat", "a dog"]
    assert [caption for _, caption in render.sample_items(found, prompts)] == [
        "before: a cat", "before: a dog", "step 100: a cat", "step 100: a dog"
    ], "one step after the other, a column for each prompt"  # fmt: skip
    assert render.sample_columns(found | {200: [Path("x.png")] * 4}, prompts) == 4
    assert render.sample_items({}) == []


def test_sizes_and_notes_in_words() -> None:
    sizes = [render.size_in_words(size) for size in (962_000, 53_400_000, 2_130_000_000)]
    assert sizes == ["962 kB", "53 MB", "2.1 GB"]
    notes = {info.name: render.field_note(info) for info in describe(TrainingConfig)}
    assert notes["resolution"].endswith(". `resolution: 16 to 2048 px`"), "range and name are short help"
    labels = [render.field_label(name) for name in form_infos()] + [*GROUP_TITLES.values(), "Base model", "Preset"]
    assert len(set(labels)) == len(labels), "no label twice"
    assert "e+" not in "".join(notes.values())


def test_a_run_that_is_silent_for_a_minute_is_said_to_be() -> None:
    """R10: a heartbeat older than a minute is shown, not hidden behind the last bar."""
    assert "no sign of life" not in render.status_card(run(silent_s=54.0))
    assert "no sign of life for 2 min" in render.status_card(run(silent_s=121.0))


def test_a_paused_run_says_why() -> None:
    told = StatusChanged("paused", "The disk is full.", "", "Free some disk space, then resume the run.")
    assert "Free some disk space" in render.status_card(run(status="paused", error=told))


def test_an_interrupted_run_says_so_and_how_to_go_on() -> None:
    card = render.status_card(run(status="interrupted", resume_step=25))
    assert "This run was interrupted" in card
    assert "continue it" in card


def test_one_verdict_says_which_step_to_take_and_what_else_it_changed() -> None:
    scores = RunScores("judge", (StepScores(30, 0.8, 0.9, 0.1), StepScores(90, 0.9, 0.9, 0.1)))
    done = run(
        status="done", steps=[30, 90], scores=scores, recommended_step=90, why_recommended="It looks most like them."
    )
    assert "Step 90 is recommended.</strong><p>It looks most like them.</p>" in steps.verdict(done, None)
    assert "recommended" not in render.status_card(done), "said once"

    def changed(step: int, became: float) -> BleedReport:
        return BleedReport(
            step, "judge", (PromptChange("photo of <b>", 0.9, became), PromptChange("a car", 0.2, 0.0)), Path("x.png")
        )

    agree = steps.verdict(done, changed(90, 0.12))
    assert "at most 0.12 of 1 became the subject" in agree
    but = steps.verdict(done, changed(90, 0.96))
    assert "with side effects" in but
    assert "&quot;photo of &lt;b&gt;&quot; now looks like your subject (0.96 of 1)" in but
    assert "earlier step or a lower strength" in but
    assert steps.verdict(done, changed(30, 0.96)) == steps.verdict(done, None), "of another step"
    assert "So far: It looks" in steps.verdict(dataclasses.replace(done, status="running"), None)
    first = run(steps=[30], phase="scores")
    assert "Step 30 is being scored." in steps.verdict(first, None), "and not that nothing was measured"


def test_the_list_of_runs_links_to_each_with_all_that_it_says() -> None:
    row = runs.Row("a <b> & c", "done", "5 \u00b7 photo", "starter", "full", "4 of 4", "", "3 MB", "30 Nov, 15:56")
    listed = runs.runs_list([row])
    assert "href='?tab=train&amp;run=a+%3Cb%3E+%26+c'>a &lt;b&gt; &amp; c</a>" in listed
    assert re.findall(r"data-label='([\w ]+)'>([^<]*)<", listed) == [
        ("Photos", "5 \u00b7 photo"), ("Base model", "starter"), ("Method", "full"), ("Steps", "4 of 4"),
        ("Best step", "&ndash;"), ("Size", "3 MB"), ("Started", "30 Nov, 15:56"),
    ]  # fmt: skip
    assert "No runs yet" in runs.runs_list([])


def test_scores_are_drawn_from_two_saves_on_and_each_saved_step_can_be_used() -> None:
    first, second = StepScores(30, 0.8, 0.9, 0.1), StepScores(90, 0.9, None, 0.1)
    assert steps.score_plot([first], 30) == ""
    drawn = steps.score_plot([StepScores(0, 0.0, 1.0, 0.0), first, second], 90)
    assert drawn.count("<polyline") == 2, "a curve of one point is none"
    assert "likeness 0.90, side effects 0.10" in drawn
    assert "recommended step 90" in drawn
    listed = steps.steps_list(run(steps=[30, 90], recommended_step=30))
    assert re.findall(r"data-act='(\w+)' data-step='(\d+)'", listed) == [
        (act, step) for step in ("90", "30") for act in ("use", "convert", "compare")
    ]
    assert listed.index("Step 30") < listed.index("recommended") < listed.index("Convert: step 30")


def test_the_loss_plot_is_smoothed_and_logarithmic_as_asked() -> None:
    noisy = losses([0.5, 0.005] * 50)
    plain, log = loss_plot(noisy, 100), loss_plot(noisy, 100, log_scale=True)
    assert ">0.01</text>" in log
    assert ">0.01</text>" not in plain
    assert "nan" not in loss_plot(losses([0.0, 0.5]), 2, log_scale=True)
    assert loss_plot(noisy, 100, smoothing=0.0) != plain
    looks = [FixedNoiseLosses(step, 0.2, 0.2, 0.1, "class pictures") for step in (0, 50)]
    assert "db-smooth" in loss_plot(noisy, 100, [], looks)
    assert "db-smooth" not in loss_plot(noisy, 100, [], looks, smoothing=0.0)


def test_a_run_without_likeness_says_in_every_place_that_no_step_is_recommended_and_what_to_do() -> None:
    scores = RunScores("judge", (StepScores(60, 0.0, 1.0, 0.0),))
    pick = scores.recommended()
    assert pick is not None
    done = run(status="done", steps=[60], scores=scores, recommended_step=pick.step, why_recommended=pick.why)
    for told in (steps.verdict(done, None), render.advice_text(pick, 60, 1)):
        assert f"{pick.why}<" in told
        assert "train longer" in told
        assert "best" not in told
    assert "No step is recommended." in steps.verdict(done, None)
    assert "<b>No step is recommended.</b>" in render.advice_text(pick, 60, 1)


def test_every_phase_has_its_words() -> None:
    for phase in get_args(PhaseName):
        text = render.phase_text(run(phase=phase, phase_done=1, phase_total=10))
        assert "Starting" not in text
        assert "aria-current='step'" in progress.phase_list(run(phase=phase))


# What is recommended -------------------------------------------------------------------------------------------------


def test_a_step_just_saved_is_chosen_and_the_recommended_one_when_its_run_is_over() -> None:
    saved = ["/runs/a/20", "/runs/a/10", "starter"]
    assert preselected(saved, [], [], []) == "/runs/a/20"
    assert preselected(["/runs/a/30", *saved], saved, [], []) == "/runs/a/30", "it trains: the newest"
    assert preselected(saved, saved, ["/runs/a/10"], []) == "/runs/a/10", "over, and scored"
    assert preselected(saved, [], ["/runs/b/5", "/runs/a/10"], []) == "/runs/a/10", "of the newest run"
    assert preselected(saved, saved, ["/runs/a/10"], ["/runs/a/10"]) is None, "what one chose since stays"


def test_what_stands_beside_a_step_says_which_one_is_recommended_and_why() -> None:
    pick = Recommendation(10, "Step 10 is <best>.")
    assert "<b>Recommended.</b> Step 10 is &lt;best&gt;." in render.advice_text(pick, 10, 2)
    assert "Step 10 is recommended instead." in render.advice_text(pick, 20, 2)
    assert "Score this run" in render.advice_text(None, 20, 2)
    assert render.advice_text(None, 20, 1) == ""
    assert "still trains" in render.advice_text(pick, 20, 2, is_over=False)


def test_the_losses_at_fixed_noise_are_plotted_before_the_raw_ones() -> None:
    looks = [FixedNoiseLosses(step, 0.2 - step / 1000, 0.2, step / 1000, "class pictures") for step in (0, 50, 100)]
    before = loss_plot(losses([0.5] * 100), 100)
    plot = loss_plot(losses([0.5] * 100), 100, [], looks)
    assert "class='db-course'" in before
    assert "class='db-course'" not in plot
    assert plot.index("class='db-raw'") < plot.index("class='db-seen'"), "the raw loss lies behind"
    assert "step 100: 0.1000 your photos, 0.2000 held-out views, 0.1000 drift from the base." in plot
    assert loss_plot(losses([0.5] * 100), 100, [], looks[:1]) == before, "one point is no course"


def test_the_scores_say_who_gave_them_and_what_is_missing() -> None:
    scores = RunScores("judge <1>", (StepScores(10, 0.9),))
    told = {"steps": [10], "scores": scores, "recommended_step": 10, "why_recommended": "Step 10 is best."}
    assert "judge &lt;1&gt;" in render.scores_text(run(status="done", **told))
    assert "Not scored yet" in render.scores_text(run(status="done", steps=[10]))
    assert render.scores_text(run(steps=[10])) == "", "it trains: scores come with its saves"


@pytest.mark.parametrize(
    ("changes", "is_before"),
    [
        ({"phase": "", "step": 0}, True), ({"phase": "class images", "step": 0}, True),
        ({"phase": "samples", "step": 0}, True), ({"phase": "scores", "step": 0}, True),
        ({"phase": "loading", "step": 40}, True), ({"phase": "samples", "step": 40}, False),
        ({"phase": "training", "step": 0}, False),
    ],
)  # fmt: skip
def test_a_run_is_before_its_steps_until_the_untaught_base_has_been_looked_at(
    changes: dict[str, Any], is_before: bool
) -> None:
    assert render.is_before_steps(run(**changes)) == is_before


@pytest.mark.parametrize(
    ("thing", "stays", "goes"),
    [
        ("saves", {"samples": {0: [], 30: []}, "status": "paused"}, {"steps": [40]}),
        ("samples", {"steps": [40]}, {"samples": {0: []}}),
        ("end", {"steps": [40], "samples": {0: []}, "status": "stopping"}, {"status": "stopped"}),
        ("steps", {"steps": [40], "step": 31}, {"phase": "loading"}),
        ("saves", {"name": "another", "steps": [40]}, {"status": "failed"}),
    ],
)
def test_what_was_announced_stands_until_it_is_there(
    thing: run_panel.Announced, stays: dict[str, Any], goes: dict[str, Any]
) -> None:
    message = run_panel.announced("It comes.", thing, run(name="it's a <dog>"))
    for changes, is_past in ({}, False), (stays, False), (goes, True):
        now = run(**{"name": "it's a <dog>"} | changes)
        assert run_panel._is_past(message, run_panel.standing(now)) == is_past, changes


def test_a_message_that_announced_nothing_stays() -> None:
    for message in ("", render.panel("It is scored.", tone="good")):
        assert not run_panel._is_past(message, run_panel.standing(run(status="done")))
        assert not run_panel._is_past(message, {})
