"""Aspect-ratio buckets: their sizes, which photo belongs to which, and how batches of one bucket take turns."""

from collections import Counter

import pytest

from dreambooth.data.buckets import bucket_of, bucket_sizes, bucketed_pick
from dreambooth.data.dataset import Crop, picture_size
from dreambooth.models.family import PictureSize


@pytest.mark.parametrize("resolution_px", [64, 256, 512, 768, 1024])
def test_buckets_are_multiples_of_64_with_at_most_the_squares_area(resolution_px: int) -> None:
    sizes = bucket_sizes(resolution_px)
    assert (resolution_px, resolution_px) in sizes
    for height, width in sizes:
        assert height % 64 == width % 64 == 0
        assert resolution_px / 2 <= min(height, width) <= max(height, width) <= 2 * resolution_px
        assert (width, height) in sizes
        # One more step of its longer or its shorter side would be too much.
        larger = max((height + 64) * width, height * (width + 64))
        assert height * width <= resolution_px**2 < larger or max(height, width) == 2 * resolution_px


def test_sdxls_own_sizes_are_among_them() -> None:
    assert {(1024, 1024), (1152, 896), (1216, 832), (1344, 768)} <= set(bucket_sizes(1024))
    assert {(896, 1152), (832, 1216), (768, 1344)} <= set(bucket_sizes(1024))


@pytest.mark.parametrize(
    ("photo", "bucket"),
    [
        ((4032, 3024), (896, 1152)),
        ((3024, 4032), (1152, 896)),
        ((500, 500), (1024, 1024)),
        ((1920, 1080), (768, 1344)),
        ((100, 9000), (2048, 512)),
    ],
)
def test_a_photo_goes_to_the_bucket_nearest_to_its_shape(photo: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert bucket_of(photo, 1024) == bucket


def test_the_crop_is_the_largest_of_its_buckets_shape() -> None:
    """4032 x 3024 at 896 x 1152 loses 3 % of its width; the offset is counted in pixels of the resized photo."""
    size = picture_size((4032, 3024), Crop(1.0, 0.0, False), (896, 1152))
    assert size == PictureSize((3024, 4032), (0, round((4032 - 3024 * 1152 / 896) * 896 / 3024)), (896, 1152))
    assert picture_size((3024, 4032), Crop(0.5, 0.5, False), (1152, 896)).target == (1152, 896)


WIDE, TALL, SQUARE = (192, 320), (320, 192), (256, 256)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_batch_has_one_bucket_and_every_photo_comes_equally_often(batch_size: int) -> None:
    buckets = [[WIDE, TALL, WIDE, SQUARE, WIDE], [TALL, SQUARE]]
    batches = [
        [bucketed_pick(3, number * batch_size + place, batch_size, buckets, 4) for place in range(batch_size)]
        for number in range(40)
    ]
    for number, batch in enumerate(batches):
        assert len({buckets[pick.concept][pick.photo] for pick, _ in batch}) == 1
        assert {pick.concept for pick, _ in batch} == {number % 2}
    for concept, num_photos in ((0, 5), (1, 2)):
        own = [pick.photo for batch in batches for pick, _ in batch if pick.concept == concept]
        assert Counter(own) == dict.fromkeys(range(num_photos), 20 * batch_size // num_photos)
        visits = Counter((pick.photo, visit) for batch in batches for pick, visit in batch if pick.concept == concept)
        assert set(visits.values()) == {1}, "each visit of a photo comes once"
    assert len({pick.variant for batch in batches for pick, _ in batch}) == 4
    orders = [tuple(batch[0][0].photo for batch in batches[start : start + 10 : 2]) for start in (0, 10, 20)]
    assert len(set(orders)) > 1
