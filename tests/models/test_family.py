"""Conditions and picture sizes: what a family of models is told, and where a crop comes from."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.config.generation import GenerationConfig
from dreambooth.data.dataset import Crop, picture_size
from dreambooth.data.focus import Focus
from dreambooth.models.base import load_base
from dreambooth.models.family import Condition, PictureSize, TextInputs, joined
from dreambooth.models.sd import StableDiffusion
from dreambooth.pictures.generation import generate_images
from dreambooth.training.captions import CaptionConditions, tokenize


def test_a_recorded_step_gets_the_tensors_that_are_there_and_no_others() -> None:
    states, size_ids = torch.zeros(2, 3, 4), torch.ones(2, 6)
    condition = Condition(states, size_ids=size_ids)
    assert [tensor is given for tensor, given in zip(condition.tensors(), (states, size_ids), strict=True)] == [
        True
    ] * 2
    again = condition.with_tensors([states + 1, size_ids + 1])
    assert again.pooled is None
    assert (again.states.mean().item(), float(again.size_ids.mean())) == (1.0, 2.0)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="shorter"):
        condition.with_tensors([states])
    assert joined([condition[:1], condition[1:]]).states.shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("photo", "crop", "focus", "offset"),
    [
        ((800, 400), Crop(0.5, 0.5, False), None, (0, 256)),  # 400 px of 800 are left over; half of that at 512 / 400
        ((800, 400), Crop(0.0, 0.5, True), None, (0, 512)),  # the left square of a mirrored photo lies at its right
        ((400, 1000), Crop(0.5, 1.0, False), None, (768, 0)),
        ((1000, 500), Crop(0.0, 0.0, False), Focus(0.5, 0.5, 2.0), (256, 768)),  # 250 px around the middle
    ],
)
def test_sizes_say_where_the_crop_lies_in_the_resized_photo(
    photo: tuple[int, int], crop: Crop, focus: Focus | None, offset: tuple[int, int]
) -> None:
    assert picture_size(photo, crop, (512, 512), focus) == PictureSize((photo[1], photo[0]), offset, (512, 512))


@dataclasses.dataclass(frozen=True)
class Sized(StableDiffusion):
    """A family whose UNet is told of sizes, as SDXL's is."""

    def size_ids(self, sizes: Sequence[PictureSize]) -> torch.Tensor:
        return torch.tensor([[*size.original, *size.offset, *size.target] for size in sizes], dtype=torch.float32)


@pytest.mark.parametrize("trained", [False, True])
def test_sizes_reach_a_family_that_is_told_of_them(tiny_base_folder: Path, trained: bool) -> None:
    base = dataclasses.replace(load_base(str(tiny_base_folder)), family=Sized())
    conditions = CaptionConditions(
        base, tokenize(base, ["photo of zwx dog", ""], pad_tokens=True, notice=pytest.fail), trained=trained
    )
    sizes = [PictureSize((400, 800), (0, 256), (64, 64)), PictureSize((64, 64), (0, 0), (64, 64))]
    inputs = conditions.inputs(["photo of zwx dog", ""], sizes)
    assert isinstance(inputs, TextInputs if trained else Condition)
    assert inputs.size_ids is not None
    assert inputs.size_ids.tolist() == [[400, 800, 0, 256, 64, 64], [64, 64, 0, 0, 64, 64]]
    condition = conditions.condition(inputs)
    plain = StableDiffusion().encode_text(base, StableDiffusion().text_inputs(base, ["photo of zwx dog"], length=77))
    torch.testing.assert_close(condition.states[:1], plain.states)


def test_a_family_of_its_own_makes_the_predictions_of_a_picture(tiny_base_folder: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Counted(StableDiffusion):
        calls: list[int] = dataclasses.field(default_factory=list)

        def predict(self, unet: Any, noisy: Any, timesteps: Any, condition: Condition) -> torch.Tensor:
            self.calls.append(len(noisy))
            return super().predict(unet, noisy, timesteps, condition)

    family = Counted()
    base = dataclasses.replace(load_base(str(tiny_base_folder)), family=family)
    request = GenerationConfig(prompt="photo of dog", num_inference_steps=3, seed=1, height=32, width=32)
    assert len(list(generate_images(base, request))) == request.num_images_per_prompt
    assert set(family.calls) == {2 * request.num_images_per_prompt}, "with guidance, twice the pictures"
