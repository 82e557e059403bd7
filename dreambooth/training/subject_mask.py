"""Finds the subject in a photo with the base's own attention: no other model is needed.

The maps are those of Tang et al. 2022 (DAAM, arXiv 2210.04885, eq. 5 and 6): how much each pixel of a noised photo
attends to the class noun, over heads, layers and noise levels.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth import rng
from dreambooth.data.dataset import INSTANCE, Pick
from dreambooth.data.decoded import forget_decoded
from dreambooth.models.family import Condition
from dreambooth.training.batches import BatchMaker
from dreambooth.training.captions import CaptionConditions
from dreambooth.training.objective import noised, place_weights

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth.models.base import Base

NOISE_LEVELS = (
    0.3,
    0.5,
    0.7,
)  # shares of the timesteps; with less noise few words are needed, with more all is guessed
COARSEST = 4  # maps of less than a quarter of the latents' side only say "in the middle"


def find_subjects(
    batches: BatchMaker,
    base: "Base",
    conditions: CaptionConditions,
    alpha_bar: "Tensor",
    should_stop: Callable[[], bool],
) -> None:
    """Compute the weights of the pixels of every prepared crop of every photo, while the model is still the base.

    A mask painted over a photo says where its subject is. If crops are not prepared, all photos have one, and are
    weighted with their crops.
    """
    import torch

    config = batches.config
    if config.not_cache_latents:
        return
    for number, (concept, photos) in enumerate(zip(config.concepts, batches.concepts, strict=True)):
        prompt = concept.class_prompt or ""
        positions = noun_positions(base.tokenizer, prompt)
        for photo in range(len(photos.instance)):
            for variant in range(batches.pool.num_variants):
                if should_stop():
                    return
                pick = Pick(number, photo, variant)
                if photos.instance[photo].mask is not None:
                    batches.subject_weights[pick] = batches.painted_weights(pick)
                    continue
                crop = batches.pool.encoded(INSTANCE, pick)
                with torch.no_grad():
                    condition = conditions([prompt], [crop.size])
                latents = crop.mean * batches.scaling_factor
                found = subject_map(base, condition, positions, latents, alpha_bar, batches.seed, pick)
                batches.subject_weights[pick] = place_weights(found, config.background_weight)
    forget_decoded()  # masks are read from their files as photos are


class _Watcher:
    """diffusers' cross-attention that also records how much each pixel attends to some of the tokens."""

    def __init__(self, positions: Sequence[int]) -> None:
        self._positions = list(positions)
        self.maps: list[Tensor] = []

    def __call__(
        self,
        attn: Any,
        hidden_states: "Tensor",
        encoder_hidden_states: "Tensor",
        attention_mask: "Tensor | None" = None,
        **ignored: Any,
    ) -> "Tensor":
        import torch

        query, key, value = (
            attn.head_to_batch_dim(layer(states))
            for layer, states in (
                (attn.to_q, hidden_states), (attn.to_k, encoder_hidden_states), (attn.to_v, encoder_hidden_states),
            )
        )  # fmt: skip
        attention = attn.get_attention_scores(query, key, attention_mask)
        num_pictures, num_places = hidden_states.shape[:2]
        side = round(num_places**0.5)
        of_noun = attention[..., self._positions].sum(-1).float().view(num_pictures, -1, side, side)
        self.maps.append(of_noun.mean(1, keepdim=True))
        out = attn.batch_to_head_dim(torch.bmm(attention, value))
        result: Tensor = attn.to_out[1](attn.to_out[0](out))
        return result


def noun_positions(tokenizer: Any, class_prompt: str) -> list[int]:
    """Return which tokens of the class prompt are its last word: `dog` for `photo of a dog`."""
    words = class_prompt.split()
    before = len(tokenizer(" ".join(words[:-1])).input_ids) - 1
    end = len(tokenizer(class_prompt).input_ids) - 1
    last = tokenizer.model_max_length - 1
    return list(range(min(before, last - 1), min(end, last)))


def subject_map(
    base: "Base",
    condition: Condition,
    positions: Sequence[int],
    latents: "Tensor",
    alpha_bar: "Tensor",
    seed: int,
    pick: Pick,
) -> "Tensor":
    """Return how much each pixel of a photo shows the subject, 0 to 1, (1, height, width).

    condition: of the class prompt, a batch of one; latents: (channels, height, width), clean. The UNet's attention
    processors are restored afterwards.
    """
    import torch

    timesteps = torch.tensor([round(level * (len(alpha_bar) - 1)) for level in NOISE_LEVELS], device=latents.device)
    generator = rng.generator(seed, "gauges", pick.concept, pick.photo, pick.variant)
    noise = torch.randn((len(timesteps), *latents.shape), generator=generator).to(latents.device)
    clean = latents.expand_as(noise)
    unet, before = base.unet, base.unet.attn_processors
    watcher = _Watcher(positions)
    watched = {name: watcher if ".attn2." in name else processor for name, processor in before.items()}
    try:
        unet.set_attn_processor(watched)
        with torch.no_grad():
            noisy = noised(clean, noise, alpha_bar.to(latents.device)[timesteps])
            of_class = condition.each(lambda tensor: tensor.expand(len(timesteps), *tensor.shape[1:]))
            base.family.predict(unet, noisy, timesteps, of_class)
    finally:
        unet.set_attn_processor(before)
    return _together(watcher.maps, latents.shape[-1])


def _together(maps: "list[Tensor]", side: int) -> "Tensor":
    """Return the mean over layers and noise levels at the latents' size, scaled from 0 (lowest) to 1 (highest)."""
    import torch

    fine = [one for one in maps if one.shape[-1] >= side / COARSEST]
    scaled = [torch.nn.functional.interpolate(one, (side, side), mode="bilinear") for one in fine]
    mean: Tensor = torch.cat(scaled).mean(0)
    low, high = mean.min(), mean.max()
    return (mean - low) / (high - low).clamp(min=1e-12)
