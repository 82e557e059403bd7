"""What a run will take, before it starts: presets with memory and time, and one sentence; nothing nobody measured."""

import dataclasses
import re
from pathlib import Path

import pytest

from dreambooth.config.concepts import Concept
from dreambooth.config.presets import PRESETS
from dreambooth.config.training import SD15, TrainingConfig
from dreambooth.data.photo_sets import PhotoSet
from dreambooth.device.hardware import Device
from dreambooth.durable import write_json
from dreambooth.environment import Settings
from dreambooth.forecast import offers as forecast
from dreambooth.forecast.pace import likeness
from dreambooth.models.base import STARTER
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import Workspace
from dreambooth.runs.jobs import Jobs
from ui.boundary import Services, Shown
from ui.fields import form_infos, shown_value
from ui.train import handlers as train_handlers
from ui.train import plan as plan_text

GIB = 2**30
T4 = Device("cuda", "Tesla T4", 15 * GIB, int(14.2 * GIB))
SMALL = Device("cuda", "RTX 3060", 8 * GIB, 7 * GIB)
PROCESSOR = Device("cpu", "CPU with 2 cores", 16 * GIB, 12 * GIB)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "data")


@pytest.mark.parametrize("device", [T4, PROCESSOR], ids=["gpu", "cpu"])
@pytest.mark.parametrize("base", [SD15, STARTER])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_proposes_settings_that_can_be_run(base: str, preset: str, device: Device, photos: Path) -> None:
    concept = Concept("photo of zwx dog", str(photos), "photo of dog")
    for kind in ("person", "pet", "object", "style"):
        config = forecast.proposed_config(base, preset, kind, 5, {}, device)
        dataclasses.replace(config, concepts=(concept,)).checked()
        assert device.kind != "cpu" or config.mixed_precision != "fp16"


def test_the_fitting_preset_is_chosen_and_the_others_are_greyed_with_the_reason(workspace: Workspace) -> None:
    offered = forecast.offers(workspace, SD15, "pet", 5, {}, SMALL)
    assert forecast.fitting(offered, "recommended") not in ("recommended", "high_speed", "full_precision")
    note = plan_text.preset_note(offered, "leanest")
    assert "#preset label:nth-of-type(2)" in note
    assert "RTX 3060 has 7.0 GB free." in note
    labels = {value: label for label, value in plan_text.preset_choices(offered)}
    assert labels["recommended"].startswith("Recommended\nneeds ")
    assert labels["recommended"].endswith("GB, 7.0 are free")
    needs = [float(re.findall(r"needs ([\d.]+) GB", label)[0]) for label, _ in plan_text.preset_choices(offered)]
    assert needs == sorted(needs), "the least first"
    assert re.fullmatch(r"Leanest\nneeds [\d.]+ GB\nfits (6|8) GB\nslower, and weights in bf16", labels["leanest"])


def test_a_preset_that_does_not_fit_says_why_and_which_one_would(workspace: Workspace) -> None:
    offered = forecast.offers(workspace, SD15, "pet", 5, {}, SMALL)
    note = plan_text.preset_note(offered, "full_precision")
    assert "Full precision would run out of memory here. It needs " in note
    assert "RTX 3060 has 7.0 GB free. Use Leanest, which needs " in note
    told = next(offer.forecast for offer in offered if offer.name == "full_precision")
    assert plan_text.too_little_memory(told, offered, "full_precision").todo in note


def test_a_start_that_would_run_out_of_memory_is_refused_and_one_that_fits_is_not(
    workspace: Workspace, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(workspace, ModelManager("cpu"))
    started: list[TrainingConfig] = []
    monkeypatch.setattr(jobs, "start", lambda config, *_: started.append(config) or "run")
    services = Services(jobs, workspace, Settings(workspace.data_dir), Shown(tmp_path), device=lambda: SMALL)
    handlers = train_handlers.Handlers(services)
    PhotoSet(workspace.datasets_dir / "dog").add(sorted(photos.iterdir()))
    for preset in ("full_precision", "leanest"):
        config = forecast.proposed_config(SD15, preset, "pet", 3, {}, SMALL)
        values = [shown_value(info, getattr(config, name)) for name, info in form_infos().items()]
        said = handlers.start([], preset, "dog", "photo of zwx dog", "photo of dog", SD15, *values)["message"]
        assert ("Full precision would run out of memory here." in said) == (preset == "full_precision"), said
        assert ("Use Leanest, which needs" in said) == (preset == "full_precision")
    assert [config.weight_precision for config in started] == ["bf16"]
    # What a model for pictures keeps of the card is the next run's.
    monkeypatch.setattr(jobs, "held_bytes", lambda: SMALL.total_bytes)
    taken = dataclasses.replace(SMALL, free_bytes=GIB)
    handlers = train_handlers.Handlers(dataclasses.replace(services, device=lambda: taken))
    said = handlers.start([], "leanest", "dog", "photo of zwx dog", "photo of dog", SD15, *values)["message"]
    assert "run out of memory" not in said


def test_the_form_says_what_was_typed_without_effect_before_the_start_and_at_it(
    workspace: Workspace, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, started = Jobs(workspace, ModelManager()), []
    monkeypatch.setattr(jobs, "start", lambda config, wish, asked: started.append((config, asked)) or "run")
    services = Services(jobs, workspace, Settings(workspace.data_dir), Shown(tmp_path), device=lambda: PROCESSOR)
    handlers = train_handlers.Handlers(services)
    kept = PhotoSet(workspace.datasets_dir / "dog")
    kept.add(sorted(photos.iterdir()))
    config = forecast.proposed_config(STARTER, "recommended", kept.words().kind, 3, {}, PROCESSOR)
    proposed = {name: shown_value(info, getattr(config, name)) for name, info in form_infos().items()}
    words = ["dog", "photo of zwx dog", "photo of dog", STARTER]

    def said(**typed: object) -> tuple[str, str]:
        values = (proposed | typed).values()
        plan = handlers.tell("", "recommended", "pet", proposed, *words, *values)["plan"]
        return plan, handlers.start([], "recommended", *words, *values)["run_message"]

    assert all("no effect" not in text for text in said())
    for text in said(ema_decay=0.9, num_train_epochs=2, with_prior_preservation=False):
        assert "ema_decay&quot; has no effect: use_ema is off" in text
        assert "num_class_images" not in text, "the form proposed it"
    config, asked = started[-1]
    assert (config.max_train_steps, config.num_train_epochs) == (None, 2)
    assert asked == {"ema_decay", "num_train_epochs", "with_prior_preservation"}
    plan, _ = said(num_train_epochs=2, with_prior_preservation=False)
    assert "6 steps" in plan
    for text in said(learning_rate=1e-6):
        assert "learning_rate&quot; is 1e-06, and a full fine-tuning of this base usually has 4e-05 to 0.004" in text


def test_a_wish_that_fits_is_kept_and_nothing_is_greyed_on_the_starter(workspace: Workspace) -> None:
    offered = forecast.offers(workspace, STARTER, "pet", 5, {}, PROCESSOR)
    assert forecast.fitting(offered, "high_speed") == "high_speed"
    note = plan_text.preset_note(offered, "high_speed")
    assert "keep Recommended" in note
    assert "opacity" not in note
    values = [value for _, value in plan_text.preset_choices(offered)]
    assert values[0] == "recommended", "what is best for most comes first where nothing forbids it"
    assert sorted(values) == sorted(PRESETS)


def test_where_nothing_fits_it_is_said(workspace: Workspace) -> None:
    offered = forecast.offers(workspace, SD15, "pet", 5, {}, Device("cuda", "Old card", GIB, GIB))
    assert forecast.fitting(offered, "recommended") == "leanest"
    assert "No preset fits: Old card has 1.0 GB free." in plan_text.preset_note(offered, "leanest")


def test_where_only_a_lora_fits_it_is_offered(workspace: Workspace) -> None:
    """On a card with 6 GB no preset of a full fine-tuning of SD 1.5 fits but the leanest; on 4.5 none does."""
    card = Device("cuda", "Small card", 5 * GIB, round(4.85 * GIB))
    plain = {"with_prior_preservation": False}
    offered = forecast.offers(workspace, SD15, "pet", 5, {**plain, "save_sample_prompt": "dog"}, card)
    as_lora = forecast.offers(workspace, SD15, "pet", 5, {**plain, "method": "lora"}, card)
    assert not any(offer.forecast.fits for offer in offered if offer.name != "leanest")
    fit = forecast.fitting(as_lora, "recommended")
    assert next(offer for offer in as_lora if offer.name == fit).forecast.fits
    small = [offer for offer in offered if offer.name != "leanest"]
    note = plan_text.preset_note(small, "recommended")
    assert re.search(r"A LoRA needs [34]\.\d GB: choose it above\.", note)
    assert "A LoRA" not in plan_text.preset_note(as_lora, fit)


def test_time_is_told_only_where_a_like_run_was_timed_here(workspace: Workspace) -> None:
    config = forecast.proposed_config(STARTER, "recommended", "pet", 5, {}, PROCESSOR)
    untimed = forecast.forecast(workspace, config, 5, PROCESSOR)
    assert untimed.seconds is None
    assert re.search(r"about \d+ min on two free cores", plan_text.start_sentence(untimed)), (
        "of the starter it is known"
    )
    pace = {"step_s": 0.5, "class_image_step_s": 0.1, "sample_step_s": 0.1, "save_s": 2.0, "loading_s": 10.0}
    write_json(workspace.data_dir / "paces.json", [{"likeness": likeness(config), "pace": pace}])
    told = forecast.forecast(workspace, config, 5, PROCESSOR)
    # Loading, 600 steps, 50 class images of 20 steps, 3 saves; no samples without words.
    assert told.seconds == pytest.approx(10 + 300 + 100 + 6)
    assert "about 7 min on this CPU" in plan_text.start_sentence(told)
    named = dataclasses.replace(config, concepts=(Concept("photo of <b>zwx</b> cat", "photos"),))
    sentence = plan_text.start_sentence(dataclasses.replace(told, config=named))
    assert ">5 photos: &#x27;photo of &lt;b&gt;zwx&lt;/b&gt; cat&#x27;<" in sentence
    captioned = dataclasses.replace(named, read_prompts_from_txts=True)
    assert ">5 photos<" in plan_text.start_sentence(dataclasses.replace(told, config=captioned))
    other = dataclasses.replace(config, resolution=128)
    assert plan_text.NOT_TIMED in plan_text.start_sentence(forecast.forecast(workspace, other, 5, PROCESSOR))


def test_class_pictures_that_are_there_are_not_made_again(workspace: Workspace, photos: Path) -> None:
    concept = Concept("photo of zwx dog", str(photos), "photo of dog")
    config = forecast.proposed_config(STARTER, "recommended", "pet", 5, {"concepts": (concept,)}, PROCESSOR)
    assert forecast.class_images_to_make(workspace, config) == 50
    folder = workspace.class_images_dir / "0123456789abcdef"
    folder.mkdir()
    write_json(folder / "info.json", {"prompt": "photo of dog"})
    for number in range(30):
        (folder / f"{number:05}.png").touch()
    (workspace.class_images_dir / "odd").mkdir()
    (workspace.class_images_dir / "odd" / "info.json").write_text("[")
    assert forecast.class_images_to_make(workspace, config) == 20


def test_the_sentence_before_the_start_says_photos_steps_minutes_memory_and_disk(workspace: Workspace) -> None:
    config = forecast.proposed_config(SD15, "recommended", "pet", 5, {}, T4)
    told = plan_text.start_sentence(forecast.forecast(workspace, config, 5, T4))
    class_pictures = f"{config.num_class_images} class images"
    for words in (
        "5 photos",
        class_pictures,
        "800 steps",
        plan_text.NOT_TIMED,
        " of 14.2 GB memory",
        "writes up to ",
        " free)",
    ):
        assert words in told
    assert "db-wrong-part'>no photos yet" in plan_text.start_sentence(forecast.forecast(workspace, config, 0, T4))
