"""The measures of the DreamBooth paper (Ruiz et al. 2023, arXiv 2208.12242, 4.2-4.4) on unit embeddings.

Every argument is (pictures, size) with rows of length one. PRES and DIV here use the same embedding as fidelity; the
paper takes DINO for PRES and LPIPS for DIV, so figures compare only within one encoder.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def similarity(pictures: "Tensor", references: "Tensor") -> float:
    """Return the mean cosine over all pairs: subject fidelity, or PRES when the pictures show the class alone."""
    return float((pictures @ references.T).mean())


def own_similarity(pictures: "Tensor") -> float:
    """Return the mean cosine over pairs of different pictures of one set: the ceiling of fidelity, for real photos."""
    count = len(pictures)
    return float(((pictures @ pictures.T).sum() - count) / (count * (count - 1)))


def diversity(pictures: "Tensor") -> float:
    """Return DIV as one minus the mean cosine between pictures of one prompt; 0 when they are all the same."""
    return 1 - own_similarity(pictures)


def area_under_curve(positives: "Tensor", negatives: "Tensor") -> float:
    """Return how often a positive's score is above a negative's, ties counted half (the area under the ROC curve)."""
    differences = positives[:, None] - negatives[None, :]
    return float(((differences > 0).float() + 0.5 * (differences == 0).float()).mean())


def retrieval(queries: "Tensor", gallery: "Tensor") -> float:
    """Return the share of queries whose nearest of the gallery is the one of the same row."""
    nearest = (queries @ gallery.T).argmax(1)
    return float((nearest == nearest.new_tensor(range(len(queries)))).float().mean())
