"""The starter's judge: two small networks that say what an image of the painted world shows, and which individual.

Its scores are only as good as the judge, so every table of them also prints its validity
(`dreambooth.starter.judging.validity`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import BaseModelError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

JUDGE_FILE = "judge.safetensors"
SIDE_PX = 64
EMBEDDING_SIZE = 64
WIDTHS = (32, 64, 96, 128)


def network(num_outputs: int, side_px: int = SIDE_PX) -> "nn.Sequential":
    """Return a plain convolutional network: (batch, 3, side, side) in [-1, 1] to (batch, num_outputs); 0.6 M weights.

    Each width halves the side; at 128 px a narrow one is added first, so that all sizes end at 4 x 4.
    """
    from torch import nn

    layers: list[nn.Module] = []
    channels = 3
    for width in (*((WIDTHS[0] // 2,) if side_px > SIDE_PX else ()), *WIDTHS):
        for stride, inputs in ((2, channels), (1, width)):
            convolution = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * channels, num_outputs))


@dataclass(frozen=True)
class Judge:
    """Both networks in evaluation mode, and the words for the first one's outputs, in order."""

    attributes: "nn.Sequential"
    instance: "nn.Sequential"
    words: dict[str, list[str]]
    side_px: int = SIDE_PX

    def pictures(self, images: Sequence["Image.Image"]) -> "Tensor":
        """Return images in this judge's input format."""
        return as_pictures(images, self.side_px)

    def attributes_of(self, pictures: "Tensor") -> list[dict[str, str]]:
        """Return the most likely word for each attribute; pictures: (batch, 3, side, side) in [-1, 1]."""
        import torch

        with torch.no_grad():
            scores = self.attributes(pictures).split([len(values) for values in self.words.values()], dim=1)
        best = {name: part.argmax(1).tolist() for name, part in zip(self.words, scores, strict=True)}
        return [{name: self.words[name][best[name][row]] for name in self.words} for row in range(len(pictures))]

    def rows_of(self, images: Sequence["Image.Image"]) -> "Tensor":
        """Return the embeddings of images of any size."""
        return self.embeddings_of(self.pictures(images))

    def embeddings_of(self, pictures: "Tensor") -> "Tensor":
        """Return one unit vector per image, (batch, 64); images of one individual have similar ones."""
        import torch

        with torch.no_grad():
            return torch.nn.functional.normalize(self.instance(pictures), dim=1)


def as_pictures(images: Sequence["Image.Image"], side_px: int = SIDE_PX) -> "Tensor":
    """Return images as (batch, 3, side, side) in [-1, 1], resized if necessary."""
    import numpy as np
    import torch

    scaled = [image.convert("RGB").resize((side_px, side_px)) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in scaled])).permute(0, 3, 1, 2) / 127.5 - 1


def write_judge(judge: Judge, folder: Path) -> None:
    """Write both networks as fp16, with the words in the header."""
    import json

    from safetensors.torch import save_file

    weights = {}
    for name, part in (("attributes", judge.attributes), ("instance", judge.instance)):
        for key, value in part.state_dict().items():
            weights[f"{name}.{key}"] = value.half().contiguous() if value.is_floating_point() else value
    save_file(weights, folder / JUDGE_FILE, {"words": json.dumps(judge.words), "side_px": str(judge.side_px)})


def load_judge(folder: Path) -> Judge:
    """Return the judge in a starter's folder; raises BaseModelError if there is none."""
    import json

    from safetensors import safe_open
    from safetensors.torch import load_file

    path = folder / JUDGE_FILE
    if not path.exists():
        raise BaseModelError(
            f"{folder} has no judge.", "Only the starter comes with one.", "Score another base by other encoders."
        )
    with safe_open(path, "pt") as opened:
        words: dict[str, list[str]] = json.loads(opened.metadata()["words"])
        side_px = int(opened.metadata().get("side_px", SIDE_PX))
    weights = load_file(path)
    parts: dict[str, Any] = {
        "attributes": network(sum(map(len, words.values())), side_px),
        "instance": network(EMBEDDING_SIZE, side_px),
    }
    for name, part in parts.items():
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        part.load_state_dict(own)
        part.eval().requires_grad_(False)
    return Judge(parts["attributes"], parts["instance"], words, side_px)
