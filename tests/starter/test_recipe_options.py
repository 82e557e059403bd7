"""Each option of the recipe against what its paper says it is, on numbers that can be checked by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.data.class_images import kept_latents
from dreambooth.data.dataset import CLASS, INSTANCE, Pick, visit_number
from dreambooth.errors import ConfigError
from dreambooth.events import StepLoss
from dreambooth.models.base import load_base
from dreambooth.models.family import PictureSize
from dreambooth.training.batches import TEACHER_DRAWS, stratified
from dreambooth.training.materials import Materials
from dreambooth.training.objective import place_weights
from dreambooth.training.subject_mask import noun_positions, subject_map
from tests.harness.tiny import tiny_base
from tests.harness.trained import Run, quick_settings

Make = Callable[..., Materials]


@pytest.fixture
def make(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> Make:
    def made(**changes: Any) -> Materials:
        config = quick_settings(tiny_base_folder, photos, **({"gauge_interval": 0} | changes))
        return Run(config, tmp_path).materials

    return made


def losses_of(materials: Materials, folder: Path) -> list[StepLoss]:
    run = Run(materials.batches.config, folder, materials=materials)
    run.train()
    return [event for event in run.events if isinstance(event, StepLoss)]


def test_stratified_timesteps_cover_all_levels_evenly_at_every_length() -> None:
    for num_visits in (10, 40, 160):
        tenths = [stratified(0.37, visit, 1000) // 100 for visit in range(num_visits)]
        counts = [tenths.count(tenth) for tenth in range(10)]
        assert max(counts) - min(counts) <= 2, (num_visits, counts)
    assert stratified(0.0, 0, 1000) == 0
    assert stratified(0.0, 1, 1000) == 618
    assert stratified(0.5, 1, 1000) == 118  # 0.5 + 0.618 - 1


def test_a_photos_timesteps_follow_its_own_visits_and_a_pass_is_even_too(make: Make) -> None:
    batches = make(stratified_timesteps=True).batches
    by_photo: dict[int, list[int]] = {}
    for k in range(60):
        example = batches.example(INSTANCE, k)
        assert example.visit == visit_number(k, [3]) == k // 3
        by_photo.setdefault(example.pick.photo, []).append(batches.timestep(example))
    for course in by_photo.values():
        assert {t // 100 for t in course} == set(range(10))
    first_pass = sorted(course[0] for course in by_photo.values())
    assert [b - a for a, b in zip(first_pass, first_pass[1:], strict=False)] == pytest.approx([333, 333], abs=2)


def test_at_the_first_step_a_teachers_prior_is_nothing(make: Make, tmp_path: Path) -> None:
    materials = make(with_prior_preservation=True, teacher_prior=True, max_train_steps=2)
    first, second = losses_of(materials, tmp_path)
    assert first.prior_loss == pytest.approx(0.0, abs=1e-9)
    assert second.prior_loss is not None
    assert second.prior_loss > 0


def test_a_teachers_word_is_the_bases_own_and_comes_with_its_draw(make: Make, tiny_base_folder: Path) -> None:
    materials = make(with_prior_preservation=True, teacher_prior=True, max_train_steps=40)
    batches, base = materials.batches, load_base(str(tiny_base_folder))
    assert len(batches.teacher) <= 2 * TEACHER_DRAWS  # two class images
    batch = batches.batch(3, 0)
    assert batch.teacher is not None
    level = materials.alpha_bar[batch.timesteps[1]]
    noisy = level.sqrt() * batch.latents[1:] + (1 - level).sqrt() * batch.noise[1:]
    states = materials.conditions(batch.captions, batch.sizes).states[1:]
    with torch.no_grad():
        said = base.unet(noisy, batch.timesteps[1:], states).sample
    torch.testing.assert_close(batch.teacher, said, rtol=1e-4, atol=1e-5)
    again = batches.example(CLASS, 3 + 2 * TEACHER_DRAWS)
    same = batches.example(CLASS, 3)
    if again.pick == same.pick:
        assert again == same


def test_a_teacher_holds_back_the_drift_that_a_run_without_prior_shows(make: Make, tmp_path: Path) -> None:
    shared = {"with_prior_preservation": True, "max_train_steps": 12, "learning_rate": 3e-3, "gauge_interval": 12}
    drifts = []
    for name, changes in (("none", {"prior_loss_weight": 0.0}), ("teacher", {"teacher_prior": True})):
        materials = make(**shared, **changes)
        losses_of(materials, tmp_path / name)
        assert materials.fixed_noise is not None
        drifts.append(materials.fixed_noise.losses(12).drift)
    without, with_teacher = drifts
    assert with_teacher < 0.7 * without


def test_the_moving_average_follows_fast_at_first_and_then_at_its_decay() -> None:
    from diffusers.training_utils import EMAModel

    weight = torch.nn.Parameter(torch.tensor([1.0]))
    average = EMAModel([weight], decay=0.5)
    for value in (2.0, 4.0, 8.0):
        weight.data.fill_(value)
        average.step([weight])
    # decay (1 + n) / (10 + n) until that reaches 0.5: first a copy, then 2/11 * 2 + 9/11 * 4, then 3/12 and 9/12
    second = 2 / 11 * 2 + 9 / 11 * 4
    assert average.shadow_params[0].item() == pytest.approx(3 / 12 * second + 9 / 12 * 8)


def test_class_latents_are_those_of_the_sampler_with_no_spread(make: Make, tmp_path: Path) -> None:
    materials = make(with_prior_preservation=True, keep_class_latents=True)
    batches = materials.batches
    picture = batches.concepts[0].class_images[0].path
    kept = kept_latents(picture)
    assert kept is not None
    crop = batches.pool.encoded(CLASS, Pick(0, 0, 0))
    torch.testing.assert_close(crop.mean * batches.scaling_factor, kept)
    assert crop.spread.abs().max() == 0
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(picture)
    assert kept_latents(picture) is None, "another picture under the same name is encoded"


def test_captions_are_dropped_at_their_rate_and_as_a_function_of_the_seed(make: Make) -> None:
    batches = make(caption_dropout=0.25).batches
    captions = [batches.caption(batches.example(INSTANCE, k)) for k in range(400)]
    assert captions.count("") == pytest.approx(100, abs=30)
    assert captions == [batches.caption(batches.example(INSTANCE, k)) for k in range(400)]
    assert set(batches.batch(captions.index(""), 0).captions) == {""}


def test_noise_is_offset_for_photos_and_not_for_their_class(make: Make) -> None:
    plain = make(with_prior_preservation=True).batches.batch(1, 0)
    shifted = make(with_prior_preservation=True, noise_offset=0.5).batches.batch(1, 0)
    difference = shifted.noise - plain.noise
    assert difference[1].abs().max() == 0
    assert difference[0].flatten(1).std(1).max() < 1e-6
    assert difference[0, :, 0, 0].abs().min() > 0


def test_the_class_noun_is_the_last_word_of_the_class_prompt(tiny_base_folder: Path) -> None:
    tokenizer = load_base(str(tiny_base_folder)).tokenizer
    (position,) = noun_positions(tokenizer, "photo of dog")
    assert tokenizer.convert_ids_to_tokens(tokenizer("photo of dog").input_ids)[position] == "dog</w>"
    pieces = noun_positions(tokenizer, "photo of cat")
    assert tokenizer.decode([tokenizer("photo of cat").input_ids[place] for place in pieces]).strip() == "cat"


def test_watching_attention_computes_what_attention_computes_and_leaves_it(make: Make) -> None:
    materials = make()
    unet, latents = materials.base.unet, torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    condition = materials.conditions(["photo of zwx dog"], [PictureSize((32, 32), (0, 0), (32, 32))])
    batch = (torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([500]), condition.states)
    before, processors = unet(*batch).sample, dict(unet.attn_processors)
    found = subject_map(materials.base, condition, [3], latents, materials.alpha_bar, 7, Pick(0, 0, 0))
    assert found.shape == (1, 4, 4)
    assert (found.min().item(), found.max().item()) == (0.0, 1.0)
    assert unet.attn_processors == processors
    assert torch.equal(unet(*batch).sample, before)


def test_the_background_counts_less_and_the_loss_stays_as_large() -> None:
    subject = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    weights = place_weights(subject, 0.2)
    assert weights.flatten().tolist() == pytest.approx([1 / 3, 5 / 3, 1 / 3, 5 / 3])  # 0.2 and 1 over their mean 0.6
    assert place_weights(subject, 1.0).unique().tolist() == [1.0]


def test_photos_are_weighed_by_place_and_class_pictures_are_not(make: Make, tmp_path: Path) -> None:
    materials = make(with_prior_preservation=True, background_weight=0.2)
    weights = materials.batches.batch(0, 0).place_weights
    assert weights is not None
    assert weights[1].unique().tolist() == [1.0]
    assert weights[0].mean().item() == pytest.approx(1.0, abs=1e-5)
    assert weights[0].min() < 0.9
    assert len(losses_of(materials, tmp_path)) == 2


def test_zero_terminal_snr_trains_saves_and_samples_at_pure_noise(make: Make, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "v", prediction_type="v_prediction")
    materials = make(pretrained_model_name_or_path=str(base), zero_terminal_snr=True, save_interval=1)
    assert materials.alpha_bar[-1] == 0
    losses_of(materials, tmp_path)
    saved = load_base(str(tmp_path / "run" / "2"))
    assert saved.noise_scheduler_config["rescale_betas_zero_snr"] is True
    from dreambooth.pictures.samplers import DDIM, scheduler_for

    scheduler = scheduler_for(DDIM, saved.noise_scheduler_config, 4)
    assert scheduler.timesteps[0] == 999
    assert scheduler.alphas_cumprod[-1] == pytest.approx(0, abs=1e-6)


def test_options_that_miss_what_they_build_on_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="teacher_prior"):
        make(teacher_prior=True)
    with pytest.raises(ConfigError, match="keep_class_latents"):
        make(keep_class_latents=True)
    with pytest.raises(ConfigError, match="background_weight"):
        make(background_weight=0.5, not_cache_latents=True)
    with pytest.raises(ConfigError, match="predict v"):
        make(zero_terminal_snr=True)
