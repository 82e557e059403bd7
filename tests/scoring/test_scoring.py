"""The judge says what a picture shows, the measures are those of the paper, and the shipped judge is fit to be used."""

import random
from pathlib import Path
from typing import Any

import pytest

from dreambooth.errors import BaseModelError
from dreambooth.models.base import load_base, starter_folder
from dreambooth.scoring import judge as judges
from dreambooth.scoring import measures
from dreambooth.starter import judging, scenes
from dreambooth.starter.scenes import Scene

# Measures ------------------------------------------------------------------------------------------------------------


def unit(*rows: tuple[float, float]) -> Any:
    import torch

    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def test_similarity_is_the_mean_over_all_pairs() -> None:
    assert measures.similarity(unit((1, 0), (0, 1)), unit((1, 0))) == pytest.approx(0.5)
    assert measures.similarity(unit((1, 0)), unit((-1, 0))) == pytest.approx(-1)


def test_a_set_is_compared_with_itself_without_the_diagonal() -> None:
    assert measures.own_similarity(unit((1, 0), (0, 1))) == pytest.approx(0)
    assert measures.own_similarity(unit((1, 0), (1, 0), (0, 1))) == pytest.approx(1 / 3)


def test_equal_pictures_have_no_diversity() -> None:
    assert measures.diversity(unit((1, 0), (1, 0), (1, 0))) == pytest.approx(0, abs=1e-6)
    assert measures.diversity(unit((1, 0), (0, 1))) == pytest.approx(1)


def test_the_area_counts_ties_half() -> None:
    import torch

    assert measures.area_under_curve(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1
    assert measures.area_under_curve(torch.tensor([0.0]), torch.tensor([1.0])) == 0
    assert measures.area_under_curve(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])) == 0.75


def test_retrieval_counts_rows_that_find_their_own() -> None:
    assert measures.retrieval(unit((1, 0.1), (0.1, 1)), unit((1, 0), (0, 1))) == 1
    assert measures.retrieval(unit((1, 0.1), (1, 0.2)), unit((1, 0), (0, 1))) == 0.5


# The judge -----------------------------------------------------------------------------------------------------------


def test_a_written_judge_says_the_same_again(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    parts = [judges.network(5).eval(), judges.network(judges.EMBEDDING_SIZE).eval()]
    judge = judges.Judge(parts[0], parts[1], {"class": ["cat", "dog"], "colour": ["red", "blue", "green"]})
    judges.write_judge(judge, tmp_path)
    again = judges.load_judge(tmp_path)
    pictures = torch.rand(4, 3, 64, 64) * 2 - 1
    assert again.words == judge.words
    assert again.attributes_of(pictures) == judge.attributes_of(pictures)
    assert torch.allclose(again.embeddings_of(pictures), judge.embeddings_of(pictures), atol=2e-3)
    assert torch.allclose(again.embeddings_of(pictures).norm(dim=1), torch.ones(4))


def test_a_base_without_a_judge_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="no judge"):
        judges.load_judge(tmp_path)


def test_pictures_of_any_size_become_tensors() -> None:
    from PIL import Image

    pictures = judges.as_pictures([Image.new("RGB", (128, 96), "white"), Image.new("L", (64, 64))])
    assert pictures.shape == (2, 3, 64, 64)
    assert float(pictures[0].min()) == 1
    assert float(pictures[1].max()) == -1


def test_the_shipped_judge_is_small() -> None:
    assert (starter_folder() / judges.JUDGE_FILE).stat().st_size < 3 * 10**6


def test_the_shipped_judge_reads_a_scene() -> None:
    judge = judges.load_judge(starter_folder())
    scene = Scene("teapot", "red", "plain", "snow")
    picture = scenes.render(scene, 64, random.Random(3))
    assert judge.attributes_of(judges.as_pictures([picture])) == [judging.attributes_of(scene)]


@pytest.mark.slow
@pytest.mark.parametrize("through_vae", [False, True], ids=["painted", "through the VAE"])
def test_the_shipped_judge_is_valid(through_vae: bool) -> None:
    """A small exam of what the benchmarks measure on 2,000 scenes, with bounds that its size allows."""
    judge = judges.load_judge(starter_folder())
    vae = load_base("starter").vae if through_vae else None
    found = judging.validity(judge, vae, seed=1, num_scenes=300, num_galleries=4)
    assert min(found.attributes.values()) >= 0.97
    assert found.retrieval >= 0.85
    assert found.auc >= 0.95
