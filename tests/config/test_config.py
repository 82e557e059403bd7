"""Settings: ranges, authority, JSON, and all mistakes at once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dreambooth.config import presets
from dreambooth.config import training as settings
from dreambooth.config.concepts import Concept, dump_concepts_list, load_concepts_list
from dreambooth.config.fields import describe
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.limits import as_written
from dreambooth.config.presets import resolve
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import ConfigError


def problems_of(error: ConfigError) -> dict[str, str]:
    return {problem.field: problem.message for problem in error.problems}


def test_every_field_has_a_sentence_and_its_default_is_in_range(photos: Path) -> None:
    for config_type in (TrainingConfig, GenerationConfig):
        for info in describe(config_type):
            assert info.sentence.endswith("."), info.name
    TrainingConfig(concepts=(Concept("photo of zwx dog", str(photos)),)).checked()


def test_defaults_are_the_seed_scripts() -> None:
    config = TrainingConfig()
    seed_script = {
        "resolution": 512, "num_class_images": 100, "prior_loss_weight": 1.0, "train_batch_size": 4,
        "sample_batch_size": 4, "learning_rate": 5e-6, "lr_scheduler": "constant", "lr_warmup_steps": 500,
        "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_weight_decay": 1e-2, "adam_epsilon": 1e-8, "max_grad_norm": 1.0,
        "save_interval": 10_000, "save_min_steps": 0, "n_save_sample": 4, "save_guidance_scale": 7.5,
        "save_infer_steps": 20, "log_interval": 10, "num_train_epochs": 1, "gradient_accumulation_steps": 1,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in seed_script} == seed_script
    booleans = [info.name for info in describe(TrainingConfig) if info.type is bool]
    assert not any(getattr(config, name) for name in booleans), "an absent boolean is off"


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    config = TrainingConfig(
        concepts=(Concept(" ", str(tmp_path / "nowhere")),),
        resolution=100,
        learning_rate=float("nan"),
        num_class_images=0,
        lr_scheduler="zigzag",  # type: ignore[arg-type]
        with_prior_preservation=True,
        text_encoder_lr=1e-6,
    )
    with pytest.raises(ConfigError) as caught:
        config.checked()
    assert set(problems_of(caught.value)) == {
        "instance_prompt", "instance_data_dir", "resolution", "learning_rate", "num_class_images", "lr_scheduler",
        "class_prompt", "text_encoder_lr",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_inference_steps", 0),
        ("guidance_scale", float("inf")),
        ("height", 65),
        ("seed", -1),
        ("prompt", "x" * 2001),
    ],
)
def test_a_request_out_of_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        GenerationConfig(**{"prompt": "a dog", field: value}).checked()  # type: ignore[arg-type]
    assert list(problems_of(caught.value)) == [field]


def test_a_run_that_is_to_end_when_it_is_good_can_tell_and_keeps_what_it_ends_for(photos: Path) -> None:
    concepts = (Concept("photo of zwx dog", str(photos)),)
    blind = TrainingConfig(concepts=concepts, stop_when_good=True, save_total_limit=2)
    with pytest.raises(ConfigError) as told:
        blind.checked()
    problems = problems_of(told.value)
    assert problems["stop_when_good"].startswith("compares scores of the saves")
    assert problems["save_total_limit"].startswith("must be more than 2 with stop_when_good")
    replace(blind, save_sample_prompt="photo of zwx dog", save_total_limit=3).checked()


def test_json_gives_the_same_settings_back() -> None:
    config = TrainingConfig(concepts=(Concept("a", "b", "c"),), learning_rate=1e-6, train_text_encoder=True)
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_json_with_unknown_and_mistyped_fields_names_them() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig.from_json({"lerning_rate": 1, "resolution": "big", "hflip": 1, "max_train_steps": 2.5})
    assert set(problems_of(caught.value)) == {"lerning_rate", "resolution", "hflip", "max_train_steps"}


def test_authority_flag_then_card_then_preset_then_default() -> None:
    card = {"full": {"learning_rate": 2e-4, "resolution": 64}}
    config = resolve({"resolution": 32}, card, "recommended")
    assert (config.resolution, config.learning_rate, config.num_class_images) == (32, 2e-4, 50)
    assert config.adam_beta1 == 0.9


def test_a_cards_rate_of_the_text_encoder_needs_its_training() -> None:
    card = {"full": {"learning_rate": 2e-4, "text_encoder_lr": 1e-3}}
    assert resolve({}, card, "recommended").text_encoder_lr == 1e-3
    assert resolve({"train_text_encoder": False}, card, "recommended").text_encoder_lr is None
    assert resolve({}, card).text_encoder_lr is None
    assert resolve({"text_encoder_lr": 1e-3}, card).text_encoder_lr == 1e-3, (
        "a mistake of the user's is told by checked()"
    )


def test_the_notebooks_recipe_and_its_memory_configurations() -> None:
    config = resolve({}, None, "minimum")
    assert (config.max_train_steps, config.learning_rate, config.num_class_images) == (800, 1e-6, 50)
    assert (config.prior_loss_weight, config.train_batch_size) == (1.0, 1)
    assert config.train_text_encoder
    assert config.with_prior_preservation
    assert config.use_8bit_adam
    assert config.gradient_checkpointing
    assert config.mixed_precision == "fp16"
    assert resolve({"train_text_encoder": False}, None, "minimum").learning_rate == 2e-6
    assert resolve({}, None, "full_precision").mixed_precision == "no"
    with pytest.raises(ConfigError, match="minimum, recommended"):
        resolve({}, None, "turbo")


@pytest.mark.parametrize(
    ("kind", "num_photos", "num_steps"),
    [
        ("object", 3, 400),
        ("object", 8, 600),
        ("style", 20, 600),
        ("person", 1, 800),
        ("person", 8, 1200),
        ("pet", 5, 800),
    ],
)
def test_steps_follow_from_kind_and_photos(kind: settings.Kind, num_photos: int, num_steps: int) -> None:
    assert presets.recommended_num_steps(kind, num_photos) == num_steps


def test_concepts_list_as_the_seed_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "concepts_list.json"
    concepts = (
        Concept("photo of zwx dog", "/data/zwx", "photo of dog", "/data/dog"),
        Concept("photo of ukj cat", "/c"),
    )
    path.write_text(dump_concepts_list(concepts))
    assert load_concepts_list(path) == concepts


def test_a_concepts_list_with_mistakes_names_entry_and_key(tmp_path: Path) -> None:
    path = tmp_path / "concepts_list.json"
    path.write_text('[{"instance_prompt": "x"}, 7, {"instance_prompt": "x", "instance_data_dir": "y", "colour": 1}]')
    with pytest.raises(ConfigError) as caught:
        load_concepts_list(path)
    text = str(caught.value)
    assert "concepts_list[1]: instance_data_dir is missing" in text
    assert "concepts_list[2]: must be an object" in text
    assert 'unknown key "colour"' in text
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        load_concepts_list(path)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("it's", '"it\'s"'), ("C:\\new", '"C:\\new"'), ("a\nb", '"a?b"'), ("x" * 99, '"' + "x" * 60 + '"'),
        (True, "true"), (None, "null"), (1.5, "1.5"), ([1], "a list"), ({}, "an object"),
        (10**30, "too large a number"),
    ],
)  # fmt: skip
def test_a_value_is_shown_as_it_was_written(value: object, shown: str) -> None:
    """A backslash stays one, and what is no letter is a question mark: Python's own spelling is nobody's."""
    assert as_written(value) == shown
