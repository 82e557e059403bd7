"""The 128 px world: a picture is a function of its seed and number, features are where they are said to be."""

import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dreambooth.models.base import load_base
from dreambooth.scoring.judge import load_judge
from dreambooth.starter import judging, rendering, rich_world, vae
from dreambooth.starter.atlas import EMBLEMS
from dreambooth.starter.build import build_starter
from dreambooth.starter.more_places import MORE_CONTEXTS
from dreambooth.starter.more_things import MORE_CLASSES
from dreambooth.starter.places import CONTEXTS
from dreambooth.starter.recipe import RECIPES
from dreambooth.starter.rendering import IN_DETAIL, IN_EMBLEM, IN_PATTERN
from dreambooth.starter.rich_world import Look, Scene, affine_of
from dreambooth.starter.subjects import Emblem, Subject, is_held_out, render_subject
from dreambooth.starter.things import COLOURS
from dreambooth.starter.worlds import RichWorld
from dreambooth.training import objective

SIDE = 32
SAMPLE = Scene("toy", "green", "plain", "white", second="pink", tone="halves", emblem="star", emblem_colour="yellow")
UPRIGHT = Look(affine_of(0.9, 0.9, 0.0, 1, 0.5, 0.54), backdrop=14 * 48)


def numbered(numbers: range) -> list[rendering.Painted]:
    return [RichWorld().scene(7, number)[:2] for number in numbers]


def test_a_picture_depends_on_seed_and_number_alone() -> None:
    together, seen = rendering.render(numbered(range(20)), SIDE)
    assert together.shape == (20, SIDE, SIDE, 3)
    for number in (0, 7, 8, 19):
        alone, alone_seen = rendering.render(numbered(range(number, number + 1)), SIDE)
        assert alone[0].equal(together[number])
        assert alone_seen[0].equal(seen[number])
    assert len({one.numpy().tobytes() for one in together}) == 20
    other, _ = rendering.render([RichWorld().scene(8, 0)[:2]], SIDE)
    assert not other[0].equal(together[0])


def test_eyes_and_star_are_where_the_pose_puts_them() -> None:
    (image,), (seen,) = rendering.render([(SAMPLE, UPRIGHT)], 128)
    rows, columns = torch.where(seen == IN_EMBLEM)
    star = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 128
    # The emblem's centre (0.5, 0.66) and radius 0.19 on a drawing shown at 0.9 of its size around (0.5, 0.54).
    y, r = 0.54 + 0.9 * 0.16, 0.9 * 0.19
    wide = r * math.cos(math.pi / 10)
    assert star == pytest.approx([0.5 - wide, y - r, 0.5 + wide, y + r * math.cos(math.pi / 5)], abs=0.02)
    assert image[seen == IN_EMBLEM].float().median(0).values.tolist() == list(COLOURS["yellow"])
    for side in (-1, 1):
        row, column = round(128 * (0.54 - 0.9 * 0.18)), round(128 * (0.5 + side * 0.9 * 0.10))
        assert seen[row, column] == IN_DETAIL
        assert image[row, column].max() < 60, "the pupil is dark"
    striped, (marks,) = rendering.render([(replace(SAMPLE, second=None, tone=None, pattern="striped"), UPRIGHT)], 128)
    assert (marks == IN_PATTERN).sum() > 300


def test_the_sample_subject_looks_as_its_photos_do() -> None:
    """The photos were painted by `subjects`; the same pose in this world shows the same, but for edges."""
    painter = random.Random(3)
    photo = np.asarray(render_subject(Subject("toy", "green", "pink", "star", "yellow"), "white", 128, painter))
    draws = random.Random(3)
    CONTEXTS["white"][1](ImageDraw.Draw(Image.new("RGB", (256, 256))), 256, draws)
    scale, angle = draws.uniform(0.80, 0.96), math.radians(draws.uniform(-10, 10))
    flip = -1 if draws.random() < 0.5 else 1
    x, y = 0.5 + draws.uniform(-0.06, 0.06), 0.54 + draws.uniform(-0.04, 0.04)
    level = draws.uniform(0.90, 1.04)
    look = replace(UPRIGHT, affine=affine_of(scale, scale, angle, flip, x, y), light=(level,) * 3)
    (image,), (_,) = rendering.render([(SAMPLE, look)], 128)
    distance = np.abs(image.numpy().astype(int) - photo.astype(int)).mean(2)
    assert (distance > 40).mean() < 0.05
    assert distance.mean() < 12


def test_no_training_scene_is_a_held_out_individual() -> None:
    painter = random.Random(0)
    drawn = [rich_world.random_scene(painter) for _ in range(6000)]
    like_subjects = [scene for scene in drawn if scene.tone == "halves" and scene.emblem in get_args(Emblem)]
    assert len(like_subjects) > 100
    for scene in like_subjects:
        first, second = sorted((scene.colour, scene.second or ""))
        subject = Subject(scene.class_word, first, second, scene.emblem, scene.emblem_colour or "")  # type: ignore[arg-type]
        assert not is_held_out(subject)
    assert {scene.class_word for scene in drawn} == set(MORE_CLASSES)
    assert {scene.context for scene in drawn} == set(MORE_CONTEXTS)
    assert {scene.emblem for scene in drawn} == {None, *EMBLEMS}


def test_a_caption_tells_what_it_says_in_words_of_the_world() -> None:
    painter, words = random.Random(1), set(rich_world.world_words())
    for _ in range(300):
        scene = rich_world.random_scene(painter)
        caption = rich_world.training_caption(scene, painter)
        assert set(caption.split()) <= words
        assert len(caption.split()) <= 30, "with both marks it fits into the short captions of the build"
        told = rich_world.attributes_in(scene, caption)
        assert told["class"] == scene.class_word
        for name in ("context", "accessory", "emblem", "colour"):
            value = told.get(name)
            assert not value or (MORE_CONTEXTS[value][0] if name == "context" else value) in caption
    assert SAMPLE.caption == "a photo of a green and pink toy with a yellow star on a white background"


# What a VAE gives back -----------------------------------------------------------------------------------------------


class Softened:
    """Stands for a VAE that averages over squares of so many pixels."""

    device = torch.device("cpu")

    def __init__(self, side: int) -> None:
        self._side = side

    def encode(self, pictures: torch.Tensor) -> Any:
        mean = torch.nn.functional.avg_pool2d(pictures, self._side, 1, self._side // 2, count_include_pad=False)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))

    def decode(self, latents: torch.Tensor) -> Any:
        return SimpleNamespace(sample=latents)


def test_the_measure_of_small_features_falls_with_what_is_lost() -> None:
    perfect, soft, softer = (vae.feature_restoration(Softened(side), 0, 64, 24) for side in (1, 3, 7))
    for kind in vae.FEATURES:
        assert perfect[kind].pictures > 3
        assert perfect[kind].colour_error == 0
        assert perfect[kind].contrast == pytest.approx(1, abs=1e-5)
        assert 0 < soft[kind].colour_error < softer[kind].colour_error
        assert 1 > soft[kind].contrast > softer[kind].contrast
    assert vae.sample_restoration(Softened(3), 128) > vae.sample_restoration(Softened(7), 128)


# The build -----------------------------------------------------------------------------------------------------------

TINY = replace(
    RECIPES[128], size_px=SIDE, vae_widths=(4, 8, 12, 12), unet_widths=(8, 16, 24, 24), norm_groups=4, text_width=16,
    text_layers=1, vae_steps=4, vae_batch=2, reading_steps=2, reading_batch=2, unet_steps=4, unet_batch=4,
    num_latents=64, save_every=2, judge_steps=2, vae_held_out=8,
)  # fmt: skip


class PowerCut(Exception):
    """Stands for a machine that goes away."""


def build(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    build_starter(1, 500.0, False, folder / "model", lambda *_: None, recipe=TINY, work_dir=folder / "work")
    files = sorted((folder / "model").rglob("*.safetensors"))
    return {f"{file.parent.name}.{key}": value for file in files for key, value in load_file(file).items()}


def test_a_build_that_was_cut_off_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(tmp_path / "whole")
    for module, name in ((vae, "restoration_loss"), (objective, "noised"), (judging, "rich_instance_loss")):
        calls, real = [], getattr(module, name)

        def cut(*arguments: Any, calls: list[int] = calls, real: Any = real, module: Any = module) -> Any:
            calls.append(1)
            if len(calls) == (2 if module is judging else 4):
                raise PowerCut
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, cut)
            with pytest.raises(PowerCut):
                build(tmp_path / "cut")
    after = build(tmp_path / "cut")
    assert whole.keys() == after.keys()
    assert all(whole[key].equal(after[key]) for key in whole)
    log = (tmp_path / "cut" / "work" / "log.txt").read_text("utf-8")
    assert "vae, step 2: sample photos" in log
    base = load_base(str(tmp_path / "cut" / "model"))
    assert base.card.native_px == SIDE
    assert load_judge(tmp_path / "cut" / "model").words["emblem"] == ["none", *EMBLEMS]
    assert len(base.unet.state_dict()) == 686
    caption = RichWorld().scene(1, 0)[2]
    assert len(base.tokenizer(caption, add_special_tokens=False).input_ids) == len(caption.split())
