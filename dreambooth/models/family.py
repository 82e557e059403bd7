"""What differs between families of base models: how text, pixels and noise go through their parts.

One module per family implements `Family` (`sd.py` for SD 1.x and 2.x, `sdxl.py`); no other code asks which family a
base belongs to.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from dreambooth.formats.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PictureSize:
    """Where a trained crop comes from, as (height, width) in pixels.

    original: the upright photo; offset: top and left of the crop in the resized photo; target: the crop.
    """

    original: tuple[int, int]
    offset: tuple[int, int]
    target: tuple[int, int]


@dataclass(frozen=True)
class TensorFields:
    """Tensors by name, some of which may be missing; a recorded step (a CUDA graph) takes them as a list."""

    def tensors(self) -> "list[Tensor]":
        """Return the tensors that are present, in the order of the fields."""
        return [getattr(self, name) for name in self._names()]

    def with_tensors(self, tensors: "Sequence[Tensor]") -> Self:
        """Return a copy with these tensors in place of its own, in the same order."""
        changes: dict[str, Any] = dict(zip(self._names(), tensors, strict=True))
        return dataclasses.replace(self, **changes)

    def each(self, change: "Callable[[Tensor], Tensor]") -> Self:
        """Return a copy with every tensor changed by a function."""
        return self.with_tensors([change(tensor) for tensor in self.tensors()])

    def __getitem__(self, part: slice | list[int]) -> Self:
        """Return a slice of the batch, or the entries with these indices."""
        return self.each(lambda tensor: tensor[part])

    def _names(self) -> list[str]:
        import torch

        names = (field.name for field in dataclasses.fields(self))
        return [name for name in names if isinstance(getattr(self, name), torch.Tensor)]


Fields = TypeVar("Fields", bound=TensorFields)


@dataclass(frozen=True)
class TextInputs(TensorFields):
    """Captions as the text encoders take them.

    ids: (batch, length) int64; size_ids: the images' sizes as the family's UNet takes them, if it does; ids_2: for a
    second text encoder; is_left_out: (batch,) bool, the captions that stand for no text at all, if the family treats
    them differently.
    """

    ids: "Tensor"
    size_ids: "Tensor | None" = None
    ids_2: "Tensor | None" = None
    is_left_out: "Tensor | None" = None


@dataclass(frozen=True)
class Condition(TensorFields):
    """What the UNet takes besides the noisy latents.

    states: hidden states of the captions, (batch, length, width); pooled: one vector per caption, (batch, width);
    size_ids: as in `TextInputs`. The last two only if the family has them.
    """

    states: "Tensor"
    pooled: "Tensor | None" = None
    size_ids: "Tensor | None" = None


def joined(parts: "Sequence[Fields]") -> "Fields":
    """Return batches of one kind as one batch, in order."""
    import torch

    return parts[0].with_tensors([torch.cat(same) for same in zip(*(part.tensors() for part in parts), strict=True)])


@dataclass(frozen=True)
class Posterior:
    """The VAE's distribution of an image's latents: mean and standard deviation, (batch, channels, height / 8, width /
    8) fp32, before scaling.
    """

    mean: "Tensor"
    std: "Tensor"


@dataclass(frozen=True)
class FileParts:
    """The content of a single file: the parts, and what it says or reveals of the rest.

    pad_tokens: by tokenizer, for those that pad with another token than CLIP's; index: the entries of model_index.json
    that the file's header gives.
    """

    layout: Layout
    parts: Mapping[str, Any]
    scheduler_config: dict[str, Any]
    vocabulary_size: int
    native_px: int
    pad_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    index: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Arguments: a file's tensors, its header's metadata, its layout, and whether trainable parts keep the file's number
# formats; raises KeyError, IndexError or RuntimeError for missing or wrong tensors.
FileReader = Callable[["Mapping[str, Tensor]", Mapping[str, str], Layout, bool], FileParts]


class Family(Protocol):
    """The steps between captions, pixels and predictions for one family of base models.

    `base` is a `dreambooth.models.base.Base`; modules are used on the devices and in the number formats they have.
    """

    @property
    def layout(self) -> Layout:
        """Return the parts and files of such a model."""

    @property
    def index_options(self) -> Mapping[str, Any]:
        """Return what a saved model's index tells its pipeline besides the components."""

    def text_inputs(
        self, base: Any, captions: Sequence[str], *, length: int | None, left_out: Sequence[bool] | None = None
    ) -> TextInputs:
        """Return the captions as token ids, each padded or cut to `length`, by default the longest one's.

        left_out: which of them stand for no text at all; by default the empty ones.
        """

    def encode_text(self, base: Any, inputs: TextInputs) -> Condition:
        """Return the UNet's conditioning on these captions, with a graph if the text encoder is trained."""

    def single_file_names(self, configs: Mapping[str, Mapping[str, Any]], scheduler: Mapping[str, Any]) -> set[str]:
        """Return every name of a file in the original layout, independently of how names are mapped.

        configs: those of the parts; raises KeyError, TypeError and similar for configurations without such a file.
        """

    def to_single_file(
        self, parts: "Mapping[str, Mapping[str, Tensor]]", scheduler: Mapping[str, Any]
    ) -> "dict[str, Tensor]":
        """Return the parts' weights under the original names; raises KeyError for one that has no such name."""

    def from_single_file(self, weights: "Mapping[str, Tensor]") -> "dict[str, dict[str, Tensor]]":
        """Return the parts' weights under diffusers' names, text encoders' without `text_model.`; raises KeyError."""

    def named_as_read(self, parts: "Mapping[str, Mapping[str, Tensor]]") -> "dict[str, Mapping[str, Tensor]]":
        """Return the weights of a folder's parts under the names that `from_single_file` gives them."""

    def size_ids(self, sizes: Sequence[PictureSize]) -> "Tensor | None":
        """Return the UNet's conditioning on these sizes, (batch, numbers) fp32; None if it has none."""

    def predict(self, unet: Any, noisy: "Tensor", timesteps: "Tensor", condition: Condition) -> "Tensor":
        """Return the UNet's prediction for noisy latents (batch, channels, height / 8, width / 8)."""

    def encode(self, vae: Any, pixels: "Tensor") -> Posterior:
        """Return the posterior of images (batch, 3, height, width) in -1..1, without a graph."""

    def decode(self, vae: Any, latents: "Tensor") -> "Tensor":
        """Return the images of scaled latents as (batch, 3, height, width) fp32, about -1..1."""


def family_for(layout: Layout, index: Mapping[str, Any]) -> Family:
    """Return the family of a model with this layout, whose model_index.json holds these values."""
    from dreambooth.models.sd import StableDiffusion
    from dreambooth.models.sdxl import ZEROS, StableDiffusionXL

    if layout.family == "sdxl":
        return StableDiffusionXL(layout, index.get(ZEROS, True) is True)
    return StableDiffusion(layout)


def file_reader(layout: Layout) -> FileReader:
    """Return the function that makes the parts of a model from the tensors of its single file."""
    from dreambooth.models import sd_file, sdxl_file

    return sdxl_file.parts_of if layout.family == "sdxl" else sd_file.parts_of


def usual_configs(layout: Layout) -> Mapping[str, Mapping[str, Any]]:
    """Return the configurations that models with this layout usually have, by part, for one not yet downloaded."""
    from dreambooth.models.sd import SD2_CHANGES, SD15_CONFIGS
    from dreambooth.models.sdxl import SDXL_CONFIGS

    if layout.family == "sdxl":
        return SDXL_CONFIGS
    changes = SD2_CHANGES if layout.family == "sd2" else {}
    return {part: config | changes.get(part, {}) for part, config in SD15_CONFIGS.items()}
