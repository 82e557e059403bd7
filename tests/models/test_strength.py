"""A taught model at another strength is base + s (trained - base), in pictures and in exports, exact at both ends."""

import json
from pathlib import Path

import pytest

from dreambooth.commands.cli import main
from dreambooth.config.concepts import Concept
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import BaseModelError, ConfigError
from dreambooth.models.base import load_base
from dreambooth.models.saved_step import ModelSource, load
from dreambooth.models.strength import Strength
from dreambooth.models.weights import file_metadata, read_weights
from dreambooth.pictures.painter import generate
from dreambooth.pictures.settings_text import read_recipe, text_of_picture
from dreambooth.runs.run import train


@pytest.fixture(scope="module")
def step_folder(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a step of a run whose text encoder was taught too."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("strength")
    (folder / "photos").mkdir()
    Image.linear_gradient("L").resize((48, 48)).save(folder / "photos" / "0.png")
    return train(
        TrainingConfig(
            pretrained_model_name_or_path=str(tiny_base_folder), output_dir=str(folder / "run"),
            concepts=(Concept("photo of zwx dog", str(folder / "photos"), "photo of dog"),), resolution=32, seed=3,
            train_batch_size=1, max_train_steps=1, num_crop_variants=1, learning_rate=1e-2, train_text_encoder=True,
            save_precision="fp32",
        )
    )  # fmt: skip


def test_both_ends_are_exact_and_the_middle_is_the_middle(step_folder: Path, tiny_base_folder: Path) -> None:
    import torch

    base, taught = load_base(str(tiny_base_folder)), load_base(str(step_folder))
    none, half = (load(ModelSource(str(step_folder), Strength(value, value))) for value in (0.0, 0.5))
    whole = load(ModelSource(str(step_folder), Strength()))
    for part in ("unet", "text_encoder"):
        before, after = getattr(base, part).state_dict(), getattr(taught, part).state_dict()
        assert any(not torch.equal(before[name], after[name]) for name in before)
        for name, weight in getattr(half, part).state_dict().items():
            torch.testing.assert_close(weight, (before[name] + after[name]) / 2)
            assert torch.equal(getattr(none, part).state_dict()[name], before[name])
            assert torch.equal(getattr(whole, part).state_dict()[name], after[name])


def test_the_two_parts_have_strengths_of_their_own(step_folder: Path, tiny_base_folder: Path) -> None:
    import torch

    base, taught = load_base(str(tiny_base_folder)), load_base(str(step_folder))
    mixed = load(ModelSource(str(step_folder), Strength(unet=0.0, text_encoder=1.0)))
    for part, like in (("unet", base), ("text_encoder", taught)):
        wanted = getattr(like, part).state_dict()
        assert all(torch.equal(weight, wanted[name]) for name, weight in getattr(mixed, part).state_dict().items())


def test_pictures_at_no_strength_are_the_bases_and_say_so(
    step_folder: Path, tiny_base_folder: Path, tmp_path: Path
) -> None:
    from PIL import Image

    request = {"prompt": "photo of zwx dog", "num_images_per_prompt": 1, "num_inference_steps": 2, "seed": 5}
    (weak,) = generate(
        step_folder, GenerationConfig(**request, unet_strength=0, text_encoder_strength=0), tmp_path / "a"
    )
    (of_base,) = generate(tiny_base_folder, GenerationConfig(**request), tmp_path / "b")
    (taught,) = generate(step_folder, GenerationConfig(**request), tmp_path / "c")
    assert Image.open(weak).tobytes() == Image.open(of_base).tobytes() != Image.open(taught).tobytes()
    assert read_recipe(text_of_picture(weak)).request.unet_strength == 0
    assert "strength" not in text_of_picture(taught)


def test_an_export_has_the_strength_baked_in_and_names_it(step_folder: Path, tmp_path: Path) -> None:
    import torch

    half, whole = tmp_path / "half.safetensors", tmp_path / "whole.safetensors"
    assert main(["convert", str(step_folder), str(half), "--unet_strength", "0"]) == 0
    assert main(["convert", str(step_folder), str(whole)]) == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [half.name, whole.name]
    weak, strong = read_weights(half), read_weights(whole)
    changed = {name.split(".")[0] for name, weight in weak.items() if not torch.equal(weight, strong[name])}
    assert changed == {"model"}
    assert json.loads(file_metadata(half)["dreambooth.recipe"])["strength"] == "unet 0, text encoder 1"
    assert "strength" not in json.loads(file_metadata(whole)["dreambooth.recipe"])


def test_a_strength_beyond_reason_is_refused(step_folder: Path, tmp_path: Path) -> None:
    assert main(["convert", str(step_folder), str(tmp_path / "a.safetensors"), "--unet_strength", "3"]) == 1
    with pytest.raises(ConfigError, match="unet_strength"):
        GenerationConfig(prompt="dog", unet_strength=-1).checked()


def test_a_model_without_a_known_base_is_told(tiny_base_folder: Path) -> None:
    with pytest.raises(BaseModelError, match="args.json"):
        load(ModelSource(str(tiny_base_folder), Strength(unet=0.5)))
