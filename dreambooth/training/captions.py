"""Captions encoded for the UNet, cached while the text encoder is frozen.

Every caption of a run is padded to the same length, so that a caption means the same in every batch: to the 77 tokens
of generation when `pad_tokens` is on, else to the longest caption of the run, as the seed script does within a batch.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from dreambooth.config.limits import as_written
from dreambooth.models.family import Condition, PictureSize, TextInputs, joined

if TYPE_CHECKING:
    import torch

    from dreambooth.models.base import Base


def tokenize(
    base: "Base",
    captions: Iterable[str],
    *,
    pad_tokens: bool,
    notice: Callable[[str], None],
    also: Iterable[str] = (),
) -> dict[str, TextInputs]:
    """Return each caption as the text encoder takes it, a batch of one; reports a truncated one through `notice`.

    `also` names captions that are evaluated and never trained: they get the length of the trained ones.
    """
    unique = sorted(set(captions))
    limit = base.tokenizer.model_max_length
    for caption in unique:
        num_tokens = len(base.tokenizer(caption).input_ids)
        if num_tokens > limit:
            notice(f"The caption {as_written(caption)} has {num_tokens} tokens; the model reads the first {limit}.")
    trained = base.family.text_inputs(base, unique, length=limit if pad_tokens else None)
    found = _one_by_one(unique, trained)
    others = sorted(set(also) - set(unique))
    if others:
        found |= _one_by_one(others, base.family.text_inputs(base, others, length=trained.ids.shape[1]))
    return found


def _one_by_one(captions: Sequence[str], inputs: TextInputs) -> dict[str, TextInputs]:
    return {caption: inputs[number : number + 1] for number, caption in enumerate(captions)}


class CaptionConditions:
    """Turns captions and image sizes into conditions; caches the captions' while the text encoder is frozen."""

    def __init__(self, base: "Base", inputs: dict[str, TextInputs], *, trained: bool) -> None:
        self._base, self._inputs = base, inputs
        self._frozen: dict[str, Condition] | None = None
        if not trained:
            self.freeze()

    def freeze(self) -> None:
        """Encode every caption once; from now on the text encoder is not used."""
        import torch

        for encoder in self._base.text_encoders():
            encoder.requires_grad_(False)
        device = self._device
        with torch.no_grad():
            self._frozen = {
                caption: self._base.family.encode_text(self._base, inputs.each(lambda ids: ids.to(device))).each(
                    lambda tensor: tensor.float()
                )
                for caption, inputs in self._inputs.items()
            }

    @property
    def is_frozen(self) -> bool:
        """Return whether the text encoder is no longer used."""
        return self._frozen is not None

    def token_ids(self, captions: Iterable[str]) -> list[list[int]]:
        """Return the token ids of these captions, each once, in alphabetical order of the captions."""
        return [self._inputs[caption].ids[0].tolist() for caption in sorted(set(captions))]

    @property
    def _device(self) -> "torch.device":
        device: torch.device = next(self._base.text_encoders()[0].parameters()).device
        return device

    def inputs(self, captions: Sequence[str], sizes: Sequence[PictureSize]) -> TextInputs | Condition:
        """Return the input of `condition` for a batch: the cached condition, or text inputs on the device."""
        size_ids = self._base.family.size_ids(sizes)
        if self._frozen is not None:
            known = joined([self._frozen[caption] for caption in captions])
            return known if size_ids is None else dataclasses.replace(known, size_ids=size_ids.to(known.states.device))
        ids = joined([self._inputs[caption] for caption in captions])
        device = self._device
        return dataclasses.replace(ids, size_ids=size_ids).each(lambda tensor: tensor.to(device))

    def condition(self, inputs: TextInputs | Condition) -> Condition:
        """Return the condition, with a graph while the text encoder is trained."""
        if isinstance(inputs, Condition):
            return inputs
        return self._base.family.encode_text(self._base, inputs)

    def __call__(self, captions: Sequence[str], sizes: Sequence[PictureSize]) -> Condition:
        """Return the condition of images with these captions and sizes."""
        return self.condition(self.inputs(captions, sizes))
