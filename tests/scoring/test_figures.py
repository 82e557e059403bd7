"""Each measure on pictures whose answer is known, by the judge and by full-size encoders of random weights."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from dreambooth.config.concepts import Concept
from dreambooth.models.base import starter_folder
from dreambooth.scoring import measures
from dreambooth.scoring.encoders import Embed, Examiner, encoder_examiner, examiner_for, judge_examiner, place_named
from dreambooth.scoring.figures import Kind, ProbePicture, Reference, ceiling, step_scores
from dreambooth.scoring.judge import load_judge
from dreambooth.scoring.probes import PLACES, photos_of, probes_of
from dreambooth.starter import scenes
from dreambooth.starter.places import CONTEXTS
from dreambooth.starter.subjects import Subject, render_subject

SUBJECT = Subject("teapot", "red", "white", "star", "blue")
SHOWN = ("snow", "beach", "jungle", "city")


@pytest.fixture(scope="module")
def judge() -> Examiner:
    return judge_examiner(load_judge(starter_folder()))


def portrait(context: str, seed: int, subject: Subject = SUBJECT) -> Image.Image:
    return render_subject(subject, context, 64, random.Random(seed))


def photos() -> list[Image.Image]:
    return [portrait(context, seed) for seed, context in enumerate(("wooden floor", "mountain", "rug", "water"))]


def plain(number: int) -> Image.Image:
    painter = random.Random(100 + number)
    return scenes.render(scenes.Scene("teapot", ("green", "brown", "gray", "pink")[number % 4], "plain", "snow"), 64,
                         painter)  # fmt: skip


def pictures(kinds: dict[Kind, list[Image.Image]]) -> list[ProbePicture]:
    phrases = [CONTEXTS[name][0] for name in SHOWN]
    return [
        ProbePicture(0, kind, f"photo of teapot {phrases[number % 4]}" if kind == "identifier" else "", image)
        for kind, images in kinds.items()
        for number, image in enumerate(images)
    ]


def base_pictures() -> list[ProbePicture]:
    shown = [scenes.render(scenes.Scene("teapot", "gray", "plain", name), 64, random.Random(7)) for name in SHOWN]
    return pictures({"identifier": shown, "class": [plain(number) for number in range(4)]})


def test_the_base_itself_has_no_likeness_all_of_its_prompts_and_no_drift(judge: Examiner) -> None:
    found = step_scores(judge, 0, base_pictures(), Reference([photos()], base_pictures()))
    assert (found.fidelity, found.prompt, found.drift) == (0.0, 1.0, 0.0)
    assert found.measures["changed"] == 0


def test_the_subject_itself_in_the_places_asked_for_is_a_perfect_step(judge: Examiner) -> None:
    shown = [portrait(name, 20 + seed) for seed, name in enumerate(SHOWN)]
    perfect = pictures({"identifier": shown, "class": [plain(number) for number in range(4)]})
    found = step_scores(judge, 100, perfect, Reference([photos()], base_pictures()))
    assert found.fidelity is not None
    assert found.fidelity > 0.95
    assert (found.prompt, found.drift) == (1.0, 0.0)
    assert found.measures["copies"] == 0


def test_photos_given_back_for_every_prompt_are_copies_that_follow_none(judge: Examiner) -> None:
    overfit = pictures({"identifier": photos(), "class": photos()})
    found = step_scores(judge, 900, overfit, Reference([photos()], base_pictures()))
    assert found.fidelity is not None
    assert found.fidelity > 0.95
    assert (found.prompt, found.drift) == (0.0, 1.0)
    assert found.measures["copies"] == 1
    assert found.measures["nearest photo"] == pytest.approx(1)
    assert found.measures["PRES"] > 0.9


def test_concepts_count_alike(judge: Examiner) -> None:
    shown = [portrait(name, 20 + seed) for seed, name in enumerate(SHOWN)]
    good = pictures({"identifier": shown, "class": [plain(number) for number in range(4)]})
    both = [*good, *(ProbePicture(1, one.kind, one.asked, one.image) for one in base_pictures())]
    before = [*base_pictures(), *(ProbePicture(1, one.kind, one.asked, one.image) for one in base_pictures())]
    found = step_scores(judge, 5, both, Reference([photos(), photos()], before))
    alone = step_scores(judge, 5, good, Reference([photos()], base_pictures()))
    assert found.fidelity == pytest.approx((alone.fidelity or 0) / 2)


def test_without_an_examiner_pixels_alone_are_told() -> None:
    found = step_scores(None, 1, base_pictures(), Reference([photos()], base_pictures()))
    assert (found.fidelity, found.prompt, found.drift) == (None, None, None)
    assert set(found.measures) == {"nearest photo", "copies", "changed"}
    assert ceiling(None, Reference([photos()], [])) == {}


# Pixels --------------------------------------------------------------------------------------------------------------


def test_a_copy_is_found_mirrored_and_in_another_light() -> None:
    own = photos()
    brighter = [image.point(lambda value: min(int(value * 0.8) + 30, 255)) for image in own]
    pool = measures.photo_pool(own)
    assert min(measures.nearest_photo(own, pool)) == pytest.approx(1)
    assert min(measures.nearest_photo([ImageOps.mirror(image) for image in own], pool)) == pytest.approx(1)
    assert min(measures.nearest_photo(brighter, pool)) > 0.95
    assert max(measures.nearest_photo([portrait("jungle", 3)], pool)) < 0.9


def test_pixels_that_did_not_change_are_told_so() -> None:
    black, white = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    assert measures.pixel_change([black, black], [black, white]) == [0.0, 1.0]


@pytest.mark.parametrize(("value", "share"), [(0.2, 0), (0.5, 0.5), (0.8, 1), (0.9, 1), (0.1, 0)])
def test_a_share_of_the_way_is_from_0_to_1(value: float, share: float) -> None:
    assert measures.share_of_way(value, 0.2, 0.8) == pytest.approx(share)
    assert measures.share_of_way(value, 0.3, 0.3) == 0


# Examiners -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", list(CONTEXTS))
def test_the_judge_knows_every_place_by_its_phrase(context: str) -> None:
    assert place_named(f"a photo of a white zwx dog {CONTEXTS[context][0]}", list(CONTEXTS)) == context


def test_a_prompt_without_a_place_is_not_judged(judge: Examiner) -> None:
    assert place_named("photo of zwx dog", list(CONTEXTS)) is None
    assert judge.obedience([portrait("snow", 1)] * 2, ["photo of zwx teapot", "zwx teapot in the snow"]) == [None, 1.0]


def test_probes_are_of_four_kinds_and_name_places_that_the_judge_knows() -> None:
    probes = probes_of([Concept("photo of zwx teapot", "photos", "photo of teapot")], 4)
    assert [sum(probe.kind == kind for probe in probes) for kind in ("identifier", "class", "unrelated", "empty")] == [
        4, 4, 1, 1,
    ]  # fmt: skip
    assert {probe.prompt for probe in probes if probe.kind == "unrelated"} == {"photo of dog on the beach"}
    assert len({probe.file_name for probe in probes}) == len(probes)
    assert None not in [place_named(place, list(CONTEXTS)) for place in PLACES]
    without_class = probes_of([Concept("photo of zwx dog", "photos")], 2)
    assert "class" not in {probe.kind for probe in without_class}


def small_encoders(image_px: int = 32, width: int = 16, layers: int = 1) -> tuple[Any, Any, Any]:
    """Return DINO, CLIP and a tokenizer with random weights."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = max(width // 64, 2)
        tokenizer = CLIPTokenizer.from_pretrained(starter_folder() / "tokenizer")
        vit = ViTConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
            image_size=image_px, patch_size=16,
        )  # fmt: skip
        parts = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
                 "num_attention_heads": heads}  # fmt: skip
        clip = CLIPConfig(
            vision_config=parts | {"image_size": image_px, "patch_size": 16, "projection_dim": 24},
            text_config=parts | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id},
            projection_dim=24,
        )
        return ViTModel(vit, add_pooling_layer=False).eval(), CLIPModel(clip).eval(), tokenizer


def test_dino_and_clip_give_unit_vectors_and_cosines() -> None:
    import torch

    examiner = encoder_examiner(*small_encoders())
    assert list(examiner.likeness) == ["DINO", "CLIP-I"]
    for embed in examiner.likeness.values():
        rows = embed([portrait("snow", 1), portrait("snow", 1), portrait("jungle", 2).resize((90, 50))])
        assert torch.allclose(rows.norm(dim=1), torch.ones(3))
        assert torch.allclose(rows[0], rows[1], atol=1e-6)
        assert not torch.allclose(rows[0], rows[2], atol=1e-3)
    one, two = examiner.obedience([portrait("snow", 1)] * 2, ["photo of dog", "photo of dog"])
    assert one is not None
    assert one == pytest.approx(two)
    assert -1 <= one <= 1


def test_scores_by_dino_and_clip_have_all_of_the_papers_measures() -> None:
    found = step_scores(encoder_examiner(*small_encoders()), 3, base_pictures(), Reference([photos()], base_pictures()))
    assert {"DINO", "CLIP-I", "CLIP-T", "PRES", "DIV"} <= set(found.measures)
    assert set(ceiling(encoder_examiner(*small_encoders()), Reference([photos()], []))) == {"DINO", "CLIP-I"}


def test_photos_and_the_bases_pictures_are_looked_at_once_whatever_is_saved() -> None:
    examiner, looked = encoder_examiner(*small_encoders()), []

    def watched(embed: Embed) -> Embed:
        return lambda images: looked.append(len(images)) or embed(images)  # type: ignore[func-returns-value]

    likeness = {name: watched(embed) for name, embed in examiner.likeness.items()}
    watching, reference = dataclasses.replace(examiner, likeness=likeness), Reference([photos()], base_pictures())
    first = step_scores(watching, 1, base_pictures(), reference)
    num_first = sum(looked)
    again = step_scores(watching, 1, base_pictures(), reference)
    assert again == first == step_scores(examiner, 1, base_pictures(), Reference([photos()], base_pictures()))
    # Two encoders look at the photos, the first one at the base's pictures, and both at what is new.
    assert num_first - (sum(looked) - num_first) == 2 * len(photos()) + len(base_pictures())


def test_a_phones_photo_is_held_no_larger_than_it_is_looked_at(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((3000, 4000)).save(tmp_path / "0.jpg")
    portrait("snow", 1).save(tmp_path / "1.png")
    (found,) = photos_of([Concept("photo of zwx dog", str(tmp_path))])
    assert [photo.size for photo in found] == [(512, 683), portrait("snow", 1).size]


def test_without_encoders_in_the_cache_there_is_no_examiner(tmp_path: Path) -> None:
    assert examiner_for(is_toy=False, download=False) is None


@pytest.mark.full_size
def test_encoders_of_full_size_see_pictures() -> None:
    dino, clip, tokenizer = small_encoders(image_px=224, width=384, layers=12)
    examiner = encoder_examiner(dino, clip, tokenizer)
    assert examiner.likeness["DINO"]([portrait("snow", 1)]).shape == (1, 384)
