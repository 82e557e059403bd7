"""Aspect-ratio buckets: the sizes at which photos keep their shape, and which batch has which size.

SDXL was trained on sizes of about equal area, with sides in multiples of 64 (Podell et al. 2023, arXiv 2307.01952,
section 2.3). All photos of a batch have one size, so a batch holds photos of one bucket only.
"""

import functools
import math
from collections.abc import Sequence

from dreambooth.data.dataset import INSTANCE, Pick, crop_draw, photo_order

# The UNet halves latents three times, and a latent pixel covers 8 pixels.
SIDE_STEP_PX = 64
# The longest side is at most this many times the square's, and the shortest at least its inverse: 512 to 2048 at 1024.
MAX_STRETCH = 2

Size = tuple[int, int]  # height and width in pixels


@functools.cache
def bucket_sizes(resolution_px: int) -> tuple[Size, ...]:
    """Return the buckets' (height, width) in both orientations; none has more pixels than the square of the resolution.

    The resolution is a multiple of SIDE_STEP_PX, and the square is one of the buckets.
    """
    sides = range(resolution_px // MAX_STRETCH, resolution_px * MAX_STRETCH + 1)
    found = set()
    for side in (side for side in sides if side % SIDE_STEP_PX == 0):
        other = min(resolution_px**2 // side, resolution_px * MAX_STRETCH) // SIDE_STEP_PX * SIDE_STEP_PX
        if other >= resolution_px / MAX_STRETCH:
            found |= {(side, other), (other, side)}
    return tuple(sorted(found))


def bucket_of(photo: tuple[int, int], resolution_px: int) -> Size:
    """Return the bucket that crops the least of an upright photo of this (width, height)."""
    shape = photo[1] / photo[0]
    return min(bucket_sizes(resolution_px), key=lambda size: abs(math.log(size[0] / size[1] / shape)))


def bucketed_pick(
    seed: int, k: int, batch_size: int, buckets: Sequence[Sequence[Size]], num_variants: int
) -> tuple[Pick, int]:
    """Return what example k shows when each batch is of one bucket, and how often its photo was shown before.

    `buckets` are those of each concept's photos. Concepts take turns by batch. A pass has as many batches as the
    concept has photos; each photo contributes one batch to its bucket, in a new order every pass, and a bucket's
    batches go through its own photos. So each photo is shown `batch_size` times in a pass, however few share its
    bucket.
    """
    number, place = divmod(k, batch_size)
    turn, concept = divmod(number, len(buckets))
    of_photos = buckets[concept]
    passed, at = divmod(turn, len(of_photos))
    order = photo_order(seed, INSTANCE, concept, passed, len(of_photos))
    bucket = of_photos[order[at]]
    own = [photo for photo, other in enumerate(of_photos) if other == bucket]
    before = sum(of_photos[photo] == bucket for photo in order[:at])
    visit, which = divmod((passed * len(own) + before) * batch_size + place, len(own))
    photo = own[photo_order(seed, INSTANCE, concept, visit, len(own), own[0])[which]]
    return Pick(concept, photo, crop_draw(seed, INSTANCE, k, num_variants)), visit
