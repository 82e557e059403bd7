"""The embedded model: SD 1.5's key set at narrow width, a tokenizer for any text, and a build that goes on."""

import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from dreambooth.models.base import load_base, read_card, starter_folder
from dreambooth.starter import scenes, tokens
from dreambooth.starter.build import build_starter
from dreambooth.starter.recipe import Recipe
from dreambooth.starter.worlds import WORLDS
from dreambooth.training import objective

TINY = Recipe(
    size_px=32,
    vae_widths=(4, 8, 12, 12),
    unet_widths=(8, 16, 24, 24),
    norm_groups=4,
    text_width=16,
    text_layers=1,
    vae_steps=2,
    vae_batch=2,
    reading_steps=2,
    reading_batch=2,
    unet_steps=3,
    unet_batch=4,
    num_latents=64,
    judge_steps=1,
)


@pytest.fixture(scope="module")
def starter() -> Any:
    if not (starter_folder() / "model_index.json").exists():
        pytest.fail("the starter's weights are missing")
    return load_base("starter")


# The shipped model ---------------------------------------------------------------------------------------------------


def test_the_key_set_is_that_of_sd15(starter: Any) -> None:
    assert len(starter.unet.state_dict()) == 686
    assert len(starter.vae.state_dict()) == 248
    layers = starter.text_encoder.config.num_hidden_layers
    keys = [key for key in starter.text_encoder.state_dict() if not key.endswith("position_ids")]
    assert len(keys) == 4 + 16 * layers


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_neighbouring_widths_are_equal_where_the_originals_are(starter: Any, part: str) -> None:
    first, second, third, fourth = getattr(starter, part).config.block_out_channels
    assert first != second
    assert second != third
    assert third == fourth


def test_the_latents_are_standardized_by_the_scaling_factor(starter: Any) -> None:
    import torch

    pictures = WORLDS["plain"].pictures(77, range(64), starter.card.native_px)[0]
    with torch.no_grad():
        latents = starter.vae.encode(pictures).latent_dist.mean * starter.vae.config.scaling_factor
    assert 0.7 < float(latents.std()) < 1.4


def test_the_card_names_a_toy_and_a_valid_recipe() -> None:
    from dreambooth.config.training import TrainingConfig

    card = read_card("starter")
    assert card.is_toy
    assert card.native_px >= 64
    assert "toy" in card.notice
    assert "Stable Diffusion 1.5" in card.notice
    assert set(card.recipes["full"]) <= set(TrainingConfig.__dataclass_fields__)
    assert {"resolution", "learning_rate", "max_train_steps"} <= set(card.recipes["full"])
    assert card.recipes["full"]["resolution"] == card.native_px


def test_its_recipe_trains_on_captions_as_long_as_generation_makes_them(starter: Any) -> None:
    """Trained on captions of their own length, it knew its subject there and seldom showed it when asked."""
    from dreambooth.config.presets import resolve
    from dreambooth.training.captions import tokenize

    config = resolve({}, read_card("starter").recipes, "recommended")
    captions = ["photo of zwx dog", "photo of dog"]
    inputs = tokenize(starter, captions, pad_tokens=config.pad_tokens, notice=pytest.fail)
    assert {one.ids.shape[1] for one in inputs.values()} == {starter.tokenizer.model_max_length}


def test_the_files_are_small_enough_for_the_repository() -> None:
    sizes = [file.stat().st_size for file in starter_folder().rglob("*") if file.is_file()]
    assert max(sizes) < 10 * 10**6
    assert sum(sizes) <= 20 * 10**6


def test_the_weights_are_fp16_and_finite(starter: Any) -> None:
    import torch
    from safetensors import safe_open

    for file in starter_folder().rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = weights.get_tensor(key)
                assert tensor.dtype == torch.float16 or not tensor.is_floating_point()
                assert bool(tensor.isfinite().all())


@pytest.mark.slow
def test_diffusers_opens_it_and_makes_a_picture() -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = StableDiffusionPipeline.from_pretrained(starter_folder(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.safety_checker is None
    images = pipe("a photo of a red dog in the snow", num_inference_steps=2).images
    assert images[0].size == (read_card("starter").native_px,) * 2


# The tokenizer -------------------------------------------------------------------------------------------------------


def test_all_bytes_and_their_word_endings_are_tokens(starter: Any) -> None:
    vocabulary = starter.tokenizer.get_vocab()
    alphabet = tokens.byte_alphabet()
    assert len(set(alphabet)) == 256
    assert all(piece in vocabulary and f"{piece}</w>" in vocabulary for piece in alphabet)
    assert starter.text_encoder.get_input_embeddings().num_embeddings == len(vocabulary)


@pytest.mark.parametrize("text", ["jennaor", "zwx", "sks dog", "qzjx-42!", "caf\u00e9", "\u732b", "\U0001f600"])
def test_any_identifier_tokenizes_and_comes_back(starter: Any, text: str) -> None:
    ids = starter.tokenizer(text, add_special_tokens=False).input_ids
    assert ids
    assert starter.tokenizer.unk_token_id not in ids
    assert starter.tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_an_identifier_is_no_word_of_the_world(starter: Any) -> None:
    assert len(starter.tokenizer("zwx", add_special_tokens=False).input_ids) > 1


def test_the_words_of_a_caption_are_single_tokens(starter: Any) -> None:
    rng = random.Random(0)
    for _ in range(100):
        caption = scenes.random_scene(rng).caption
        assert len(starter.tokenizer(caption, add_special_tokens=False).input_ids) == len(caption.split())


def test_merges_join_the_most_frequent_pair_first() -> None:
    # In "ab ab cab" the pair a + b</w> occurs three times, c + the result once.
    assert tokens.learn_merges(["ab", "xab", "cab"])[0] == ("a", "b</w>")
    assert tokens.learn_merges(["a"]) == []


# The build -----------------------------------------------------------------------------------------------------------


def run_build(folder: Path, recipe: Recipe = TINY, seed: int = 1, *, go_on: bool = False) -> list[str]:
    import torch

    torch.set_num_threads(1)
    stages: list[str] = []
    build_starter(
        seed,
        500.0,
        go_on,
        folder / "model",
        lambda stage, percent, note: stages.append(stage),
        recipe=recipe,
        work_dir=folder / "work",
    )
    return stages


def weights_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    files = sorted((folder / "model").rglob("*.safetensors"))
    return {f"{file.parent.name}.{key}": value for file in files for key, value in load_file(file).items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    run_build(folder)
    return folder


def test_a_build_writes_a_model_that_loads(built: Path) -> None:
    base = load_base(str(built / "model"))
    assert len(base.unet.state_dict()) == 686
    assert base.card.native_px == 32
    assert sorted(folder.name for folder in (built / "work" / "unet").iterdir()) == ["0000003"]


def test_the_same_seed_builds_the_same_model(built: Path, tmp_path: Path) -> None:
    run_build(tmp_path)
    first, second = weights_of(built), weights_of(tmp_path)
    assert first.keys() == second.keys()
    assert all(first[key].equal(second[key]) for key in first)


def test_a_build_goes_on_where_it_was(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    calls: list[int] = []
    noised = objective.noised

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return noised(*arguments)

    monkeypatch.setattr(objective, "noised", counted)
    run_build(tmp_path, replace(TINY, unet_steps=5))
    assert len(calls) == 2, "three of five steps were kept, and the objective is the trainer's own"
    before, after = weights_of(built), weights_of(tmp_path)
    assert any(not before[key].equal(after[key]) for key in before if key.startswith("unet."))
    assert all(before[key].equal(after[key]) for key in before if key.startswith("vae."))


def test_a_build_can_start_from_committed_weights(built: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    shutil.copytree(built / "model", tmp_path / "model")
    run_build(tmp_path, replace(TINY, vae_steps=0, unet_steps=0, judge_steps=0), go_on=True)
    before, after = weights_of(built), weights_of(tmp_path)
    assert all(before[key].equal(after[key]) for key in before if not key.startswith("vae.quant"))
