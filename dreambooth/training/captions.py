"""Captions as the UNet sees them: the text encoder's hidden states.

Every caption of a run is padded to the same length, so that a caption means the same in every batch: to the 77 tokens
of generation when `pad_tokens` is on, else to the longest caption of the run, as the seed script does within a batch.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def tokenize(
    tokenizer: Any,
    captions: Iterable[str],
    *,
    pad_tokens: bool,
    notice: Callable[[str], None],
    also: Iterable[str] = (),
) -> "dict[str, Tensor]":
    """Return the token ids of each caption, each (length,) int64; a cut caption is told through `notice`.

    `also` names captions that are only looked at: they get the length that the trained ones have.
    """
    unique = sorted(set(captions))
    limit = tokenizer.model_max_length
    for caption in unique:
        num_tokens = len(tokenizer(caption).input_ids)
        if num_tokens > limit:
            notice(f"The caption {caption[:60]!r} has {num_tokens} tokens; the model reads the first {limit}.")
    encoded = tokenizer(
        unique,
        padding="max_length" if pad_tokens else "longest",
        max_length=limit,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    others = sorted(set(also) - set(unique))
    found = dict(zip(unique, encoded, strict=True))
    if others:
        ids = tokenizer(
            others, padding="max_length", max_length=encoded.shape[1], truncation=True, return_tensors="pt"
        ).input_ids
        found |= dict(zip(others, ids, strict=True))
    return found


class CaptionStates:
    """Turns captions into hidden states (batch, length, width), remembering them while the text encoder is frozen."""

    def __init__(self, text_encoder: Any, token_ids: "dict[str, Tensor]", *, trained: bool) -> None:
        self._text_encoder, self._token_ids = text_encoder, token_ids
        self._frozen: dict[str, Tensor] | None = None
        if not trained:
            self.freeze()

    def freeze(self) -> None:
        """Encode every caption once; from here on the text encoder is not asked again."""
        import torch

        self._text_encoder.requires_grad_(False)
        device = next(self._text_encoder.parameters()).device
        with torch.no_grad():
            self._frozen = {
                caption: self._text_encoder(ids[None].to(device))[0][0].float()
                for caption, ids in self._token_ids.items()
            }

    def token_ids(self, captions: Iterable[str]) -> list[list[int]]:
        """Return the token ids of these captions, each once, in the captions' own order of letters."""
        return [self._token_ids[caption].tolist() for caption in sorted(set(captions))]

    def inputs(self, captions: Sequence[str]) -> "Tensor":
        """Return what `states` wants for these captions: token ids, or while frozen the remembered states."""
        import torch

        if self._frozen is not None:
            return torch.stack([self._frozen[caption] for caption in captions])
        device = next(self._text_encoder.parameters()).device
        return torch.stack([self._token_ids[caption] for caption in captions]).to(device)

    def states(self, inputs: "Tensor") -> "Tensor":
        """Return the hidden states, with a graph while the text encoder is trained."""
        if inputs.is_floating_point():
            return inputs
        states: Tensor = self._text_encoder(inputs)[0]
        return states

    def __call__(self, captions: Sequence[str]) -> "Tensor":
        """Return the hidden states of these captions."""
        return self.states(self.inputs(captions))
