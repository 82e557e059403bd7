"""Paints many pictures of the 128 px world at a time, on any device, by lookups in the atlas.

A picture depends only on its scene and look, not on the others in its batch. It is sampled at twice its resolution and
averaged.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from dreambooth.starter.atlas import (
    EMBLEM_GRID,
    EMBLEMS,
    FIRST_DETAIL,
    GRID,
    MARGIN,
    NUM_LABELS,
    TEXTURE_SIDE,
    UNIT,
    Atlas,
    atlas,
    thing_name,
)  # fmt: skip
from dreambooth.starter.rich_world import Look, Scene
from dreambooth.starter.scenes import SECOND
from dreambooth.starter.things import COLOURS, DARK, LIGHT, Colour

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Painted = tuple[Scene, Look]
WORLD_SEED = 0
CHUNK = 8
# Rows of a picture's palette after those of its labels.
RIM, SECOND_ROW, PATTERN, EMBLEM, NUM_ROWS = NUM_LABELS, NUM_LABELS + 1, NUM_LABELS + 2, NUM_LABELS + 3, 64
# What a map of features says of a pixel: part of a pattern, of an emblem, of a small detail such as an eye.
IN_PATTERN, IN_EMBLEM, IN_DETAIL = 1, 2, 3


def render(pictures: list[Painted], size_px: int, device: str = "cpu") -> "tuple[Tensor, Tensor]":
    """Return the pictures as (batch, size, size, 3) uint8 and the features in them as (batch, size, size) uint8."""
    import torch

    maps = _maps(size_px, device)
    chunks = [_render(pictures[first : first + CHUNK], maps, size_px) for first in range(0, len(pictures), CHUNK)]
    images, features = zip(*chunks, strict=True)
    return torch.cat(images), torch.cat(features)


def _maps(size_px: int, device: str) -> Atlas:
    if (size_px, device) not in _ON_DEVICE:
        _ON_DEVICE[size_px, device] = atlas(size_px, WORLD_SEED).to(device)
    return _ON_DEVICE[size_px, device]


_ON_DEVICE: dict[tuple[int, str], Atlas] = {}


def _render(pictures: list[Painted], maps: Atlas, size_px: int) -> "tuple[Tensor, Tensor]":
    import torch

    device = maps.labels.device
    looks = [look for _, look in pictures]
    steps = (torch.arange(2 * size_px, device=device) + 0.5) / (2 * size_px)
    u, v = _drawing_places(looks, steps)
    rows = _palette_rows(pictures, maps, u, v)
    palette, kinds = (torch.from_numpy(one).to(device) for one in _palettes(pictures, maps))
    number = torch.arange(len(pictures), device=device)[:, None, None]
    flat = rows.long() + number * NUM_ROWS
    colours = palette.view(-1, 4).index_select(0, flat.view(-1)).view(len(pictures), 2 * size_px, 2 * size_px, 4)
    gain = 1 + _numbers(looks, "shade", device)[:, None, None] * (0.5 - v)
    colours[..., :3] *= (gain * _grain(looks, maps, u, v))[..., None]
    pooled = _halved(colours, torch.add) / 4
    ground = _ground(looks, maps, size_px)
    image = ground * (1 - pooled[..., 3:]) + pooled[..., :3]
    x = steps.view(-1, 2).mean(1) - 0.5
    ramp = _numbers(looks, "ramp", device)
    slope = 1 + ramp[:, 0, None, None] * x[None, None, :] + ramp[:, 1, None, None] * x[None, :, None]
    image = image * slope[..., None] * _numbers(looks, "light", device)[:, None, None, :]
    seen = _halved(kinds.take(flat)[..., None], torch.maximum)[..., 0]
    return image.round().clamp(0, 255).to(torch.uint8), seen


def _halved(values: "Tensor", join: "Callable[[Tensor, Tensor], Tensor]") -> "Tensor":
    """Return (batch, side, side, channels) at half the side, averaging 2 x 2 neighbours; no sum over axes."""
    rows = join(values[:, 0::2], values[:, 1::2])
    return join(rows[:, :, 0::2], rows[:, :, 1::2])


def _numbers(looks: list[Look], name: str, device: "torch.device") -> "Tensor":
    import torch

    return torch.tensor([getattr(look, name) for look in looks], dtype=torch.float32, device=device)


def _drawing_places(looks: list[Look], steps: "Tensor") -> "tuple[Tensor, Tensor]":
    a, b, c, d, e, f = _numbers(looks, "affine", steps.device).T[:, :, None, None]
    x, y = steps[None, None, :], steps[None, :, None]
    v = d * x + e * y + f
    u = a * x + b * y + c + _numbers(looks, "bend", steps.device)[:, None, None] * (2 * math.pi * v).sin()
    return u, v


def _palette_rows(pictures: list[Painted], maps: Atlas, u: "Tensor", v: "Tensor") -> "Tensor":
    """Return the palette row of each sample, (batch, places, places) uint8."""
    import torch

    device = u.device
    names = [maps.names[thing_name(scene.class_word, scene.accessory)] for scene, _ in pictures]
    thing = torch.tensor(names, device=device)[:, None, None] * GRID**2
    column = (u * UNIT + MARGIN).floor().clamp(0, GRID - 1).long()
    row = (v * UNIT + MARGIN).floor().clamp(0, GRID - 1).long()
    place = thing + row * GRID + column
    rows, distance = maps.labels.take(place), maps.rims.take(place)
    widths = [look.rim * UNIT * math.hypot(look.affine[3], look.affine[4]) for _, look in pictures]
    limit = torch.tensor(widths, device=device)[:, None, None]
    rows = torch.where(distance <= limit, RIM, rows)
    for number, (scene, look) in enumerate(pictures):
        body = (rows[number] > 0) & (rows[number] < FIRST_DETAIL)
        if scene.pattern != "plain":
            rows[number].masked_fill_(body & _in_pattern(scene.pattern, u[number], v[number]), PATTERN)
        if scene.tone in ("halves", "top and bottom"):
            side = u[number] > 0.5 if scene.tone == "halves" else v[number] > 0.56
            rows[number].masked_fill_(body & side, SECOND_ROW)
        if scene.emblem:
            rows[number].masked_fill_(_in_emblem(scene.emblem, look, maps, u[number], v[number]), EMBLEM)
    return rows


def _in_pattern(name: str, u: "Tensor", v: "Tensor") -> "Tensor":
    """Return where the pattern's colour is; the first three are those of `scenes.fill`."""
    if name == "striped":
        return (v - 0.07).remainder(0.2) < 0.075
    if name == "zigzag":
        return (v - 0.07 + 0.5 * (u.remainder(0.2) - 0.1).abs()).remainder(0.2) < 0.08
    if name == "checkered":
        return ((u * 6).floor() + (v * 6).floor()).remainder(2) < 1
    row = (v / 0.2).floor()
    x = (u - 0.1 * row.remainder(2) + 0.01).remainder(0.2) - 0.055
    y = v - 0.2 * row - 0.1
    return x * x + y * y < 0.055**2


def _in_emblem(name: str, look: Look, maps: Atlas, u: "Tensor", v: "Tensor") -> "Tensor":
    x, y, r = look.emblem_place
    half = EMBLEM_GRID / 2
    column = ((u - x) * (half / r) + half).floor()
    row = ((v - y) * (half / r) + half).floor()
    inside = (column >= 0) & (column < EMBLEM_GRID) & (row >= 0) & (row < EMBLEM_GRID)
    mask = maps.emblems[EMBLEMS.index(name)]
    limit = EMBLEM_GRID - 1
    return inside & (mask[row.clamp(0, limit).long(), column.clamp(0, limit).long()] > 0)


def _palettes(pictures: list[Painted], maps: Atlas) -> "tuple[np.ndarray, np.ndarray]":
    """Return colours with coverage, (batch, rows, 4) float32, and each row's kind of feature, uint8."""
    import numpy as np

    palette = np.zeros((len(pictures), NUM_ROWS, 4), np.float32)
    kinds = np.zeros((len(pictures), NUM_ROWS), np.uint8)
    palette[:, 1:, 3] = 1
    for number, (scene, look) in enumerate(pictures):
        rows, thing = palette[number], maps.names[thing_name(scene.class_word, scene.accessory)]
        first, second = COLOURS[scene.colour], COLOURS.get(scene.second or "")
        rows[1:FIRST_DETAIL, :3] = np.add(first, look.jitter[:3])
        if second and scene.tone == "pieces":
            for piece, is_second in enumerate(look.second_pieces, start=1):
                if is_second:
                    rows[piece, :3] = np.add(second, look.jitter[3:6])
        for label, colour in maps.colours[thing].items():
            rows[label, :3] = colour
        if scene.accessory and scene.accessory.endswith("hat"):
            rows[max(maps.colours[thing]), :3] = COLOURS[scene.accessory.split()[0]]
        for label, share, other in look.mixed:
            rows[label, :3] = (1 - share) * rows[label, :3] + share * np.array(other)
        rows[RIM, :3] = look.rim_colour
        rows[SECOND_ROW, :3] = np.add(second or first, look.jitter[3:6])
        rows[PATTERN, :3] = np.add(_pattern_colour(scene.colour), look.jitter[6:9])
        rows[EMBLEM, :3] = np.add(COLOURS[scene.emblem_colour or "red"], look.jitter[9:])
        kinds[number, [PATTERN, EMBLEM]] = IN_PATTERN, IN_EMBLEM
        kinds[number, maps.small[thing]] = IN_DETAIL
    palette[..., :3] = palette[..., :3].clip(0, 255)
    palette[:, 0] = 0
    return palette, kinds


def _pattern_colour(colour: str) -> Colour:
    return SECOND.get(colour, DARK if sum(COLOURS[colour]) > 380 else LIGHT)


def _grain(looks: list[Look], maps: Atlas, u: "Tensor", v: "Tensor") -> "Tensor":
    """Return the texture of the things as factors around 1."""
    import torch

    found = torch.ones_like(u)
    for number, look in enumerate(looks):
        if look.grain[1]:
            column, row = ((one[number] * TEXTURE_SIDE).long() & (TEXTURE_SIDE - 1) for one in (u, v))
            found[number] += look.grain[1] / 48 * (maps.textures[look.texture][row, column].float() - 128)
    return found


def _ground(looks: list[Look], maps: Atlas, size_px: int) -> "Tensor":
    """Return the backdrops with shadows and texture as (batch, size, size, 3) floats."""
    import torch

    device, slack = maps.labels.device, maps.backdrops.shape[1] - size_px
    steps = torch.arange(size_px, device=device)
    found = []
    for look in looks:
        left, top = (round(share * slack) for share in look.offset)
        one = maps.backdrops[look.backdrop][top : top + size_px, left : left + size_px].float()
        if look.is_mirrored:
            one = one.flip(1)
        factor = torch.ones(size_px, size_px, device=device)
        if look.grain[0]:
            texture = maps.textures[(look.texture + 1) % len(maps.textures)]
            ratio = TEXTURE_SIDE // 2 / size_px
            place = (steps * ratio).long() & (TEXTURE_SIDE - 1)
            factor += look.grain[0] / 48 * (texture[place][:, place].float() - 128)
        strength, x, y, rx, ry = look.shadow
        if strength:
            across, down = ((steps + 0.5) / size_px - x) / rx, ((steps + 0.5) / size_px - y) / ry
            factor *= 1 - strength * (1.6 - 1.6 * (across[None, :] ** 2 + down[:, None] ** 2)).clamp(0, 1)
        found.append(one * factor[..., None])
    return torch.stack(found)
