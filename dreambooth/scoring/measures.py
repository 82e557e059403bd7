"""The measures of the DreamBooth paper (Ruiz et al. 2023, arXiv 2208.12242, 4.2-4.4) on unit embeddings.

Tensors are (images, size) with rows of length one. PRES and DIV here use the same embedding as fidelity; the paper uses
DINO for PRES and LPIPS for DIV, so scores compare only within one encoder.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

THUMBNAIL_PX = 24


def similarity(pictures: "Tensor", references: "Tensor") -> float:
    """Return the mean cosine over all pairs: subject fidelity, or PRES if the images show only the class."""
    return float((pictures @ references.T).mean())


def own_similarity(pictures: "Tensor") -> float:
    """Return the mean cosine over pairs of different images of one set: for real photos the ceiling of fidelity."""
    count = len(pictures)
    return float(((pictures @ pictures.T).sum() - count) / (count * (count - 1)))


def diversity(pictures: "Tensor") -> float:
    """Return DIV as one minus the mean cosine between images of one prompt; 0 if they are all the same."""
    return 1 - own_similarity(pictures)


def area_under_curve(positives: "Tensor", negatives: "Tensor") -> float:
    """Return how often a positive's score is above a negative's, ties counting half (the area under the ROC curve)."""
    differences = positives[:, None] - negatives[None, :]
    return float(((differences > 0).float() + 0.5 * (differences == 0).float()).mean())


def retrieval(queries: "Tensor", gallery: "Tensor") -> float:
    """Return the share of queries whose nearest neighbour in the gallery is in the same row."""
    nearest = (queries @ gallery.T).argmax(1)
    return float((nearest == nearest.new_tensor(range(len(queries)))).float().mean())


def thumbnails(images: "Sequence[Image.Image]") -> "Tensor":
    """Return thumbnails of the images' centre squares as rows of mean zero and length one, (images, 3 x 24 x 24).

    The product of two is their correlation, pixel by pixel: 1 for copies, whatever their brightness and contrast.
    """
    import numpy as np
    import torch
    from PIL import ImageOps

    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    small = [np.asarray(ImageOps.fit(image.convert("RGB"), size)).astype("float32").ravel() for image in images]
    rows = torch.from_numpy(np.stack(small))
    rows = rows - rows.mean(1, keepdim=True)
    return torch.nn.functional.normalize(rows, dim=1)


def photo_pool(photos: "Sequence[Image.Image]") -> "Tensor":
    """Return the thumbnails of the photos and of their mirror images, (2 x photos, 3 x 24 x 24)."""
    import torch

    rows = thumbnails(photos)
    return torch.cat([rows, rows.view(-1, THUMBNAIL_PX, THUMBNAIL_PX, 3).flip(2).reshape(rows.shape)])


def nearest_photo(images: "Sequence[Image.Image]", pool: "Tensor") -> list[float]:
    """Return for each image its correlation with the most similar photo, or mirrored photo: 1 for a copy.

    The copy check: likeness for an encoder is what is wanted, likeness pixel by pixel is a memorized photo.
    """
    nearest: list[float] = (thumbnails(images) @ pool.T).max(1).values.tolist()
    return nearest


def pixel_change(images: "Sequence[Image.Image]", before: "Sequence[Image.Image]") -> list[float]:
    """Return for each pair the mean difference of their pixels, 0 (the same) to 1 (black against white)."""
    from PIL import ImageChops, ImageStat

    pairs = zip(images, before, strict=True)
    differences = [ImageChops.difference(one.convert("RGB"), two.convert("RGB").resize(one.size)) for one, two in pairs]
    return [sum(ImageStat.Stat(difference).mean) / 3 / 255 for difference in differences]


def share_of_way(value: float, start: float, goal: float) -> float:
    """Return how far `value` is from `start` to `goal`, 0 to 1; 0 if the two cannot be distinguished."""
    if abs(goal - start) < 1e-6:
        return 0.0
    return min(max((value - start) / (goal - start), 0.0), 1.0)
