"""The training objective, as pure tensor mathematics.

Notation: x_0 clean latents (batch, channels, height, width), eps noise of the same shape, t integer timesteps (batch,),
alpha_bar_t the cumulative signal level of Ho et al. 2020 (DDPM, arXiv 2006.11239, eq. 4).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dreambooth.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]


def noised(latents: "Tensor", noise: "Tensor", alpha_bar: "Tensor") -> "Tensor":
    """Return x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM, eq. 4); alpha_bar: one value per image."""
    signal, spread = _signal_and_spread(alpha_bar, latents)
    return signal * latents + spread * noise


def target(latents: "Tensor", noise: "Tensor", alpha_bar: "Tensor", prediction_type: PredictionType) -> "Tensor":
    """Return what the UNet must predict: eps (DDPM, eq. 14), or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0.

    v is Salimans & Ho 2022 (arXiv 2202.00512), appendix D.
    """
    if prediction_type == "epsilon":
        return noise
    signal, spread = _signal_and_spread(alpha_bar, latents)
    return signal * noise - spread * latents


def checked_prediction_type(name: str) -> PredictionType:
    """Return the prediction type if this trainer supports it; raises BaseModelError for others, such as `sample`."""
    known: dict[str, PredictionType] = {"epsilon": "epsilon", "v_prediction": "v_prediction"}
    if name in known:
        return known[name]
    raise BaseModelError(
        f'The base predicts "{name}".',
        "Only epsilon and v_prediction are known here.",
        "Choose a base of SD 1.x, 2.x or SDXL.",
    )


def _signal_and_spread(alpha_bar: "Tensor", like: "Tensor") -> tuple["Tensor", "Tensor"]:
    per_picture = alpha_bar.to(like).view(-1, *[1] * (like.ndim - 1))
    return per_picture.sqrt(), (1 - per_picture).sqrt()


def min_snr_weights(alpha_bar: "Tensor", gamma: float, prediction_type: PredictionType) -> "Tensor":
    """Return the weight of each image's loss, min(SNR, gamma) / SNR, or / (SNR + 1) for v; one value per image.

    SNR = alpha_bar / (1 - alpha_bar). Hang et al. 2023 (Min-SNR, arXiv 2303.09556, eq. 8 and section 3.4): noise levels
    with an SNR below gamma keep the weight of the plain loss, and those above it are limited to gamma.
    """
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / (snr if prediction_type == "epsilon" else snr + 1)


def zero_terminal_snr(alpha_bar: "Tensor") -> "Tensor":
    """Return the noise schedule rescaled so that nothing of the image is left at its last timestep; the first stays.

    Lin et al. 2023 (Common Diffusion Noise Schedules and Sample Steps are Flawed, arXiv 2305.08891, algorithm 1):
    sqrt(alpha_bar) is shifted until its last value is 0, and scaled until its first is what it was.
    """
    signal = alpha_bar.sqrt()
    first, last = signal[0], signal[-1]
    moved: Tensor = ((signal - last) * (first / (first - last))).square()
    return moved


def offset_noise(noise: "Tensor", shift: "Tensor", strength: float) -> "Tensor":
    """Return eps + strength * delta, with one delta (channels, 1, 1) for all pixels of an image.

    Guttenberg 2023 (Diffusion with Offset Noise): what the UNet must remove then includes the image's mean, so that
    very dark and very bright ones can be learned. Plain noise has almost none in its mean.
    """
    return noise + strength * shift


def place_weights(subject: "Tensor", background_weight: float) -> "Tensor":
    """Return the weight of each pixel of a photo, with a mean of 1, so that the loss keeps its magnitude."""
    weights = background_weight + (1 - background_weight) * subject
    return weights / weights.mean().clamp(min=1e-12)


@dataclass(frozen=True)
class Losses:
    """The parts of a step's loss, as scalar tensors; attached to the graph until they are `detached`."""

    total: "Tensor"
    instance: "Tensor"
    prior: "Tensor | None"

    def detached(self) -> "Losses":
        """Return the numbers alone, without a graph in memory."""
        return Losses(self.total.detach(), self.instance.detach(), None if self.prior is None else self.prior.detach())


def prior_preservation(
    prediction: "Tensor",
    wanted: "Tensor",
    num_instance: int,
    prior_loss_weight: float,
    picture_weights: "Tensor | None" = None,
    place_weights: "Tensor | None" = None,
) -> Losses:
    """Return L = L_instance + w L_prior (Ruiz et al. 2023, DreamBooth, arXiv 2208.12242, eq. 2).

    The first `num_instance` images of the batch are the subject, the rest its class; each part is the mean over its own
    images, so their numbers may differ. Without class images the prior is absent, not zero. Each image has its own
    weight, if given (batch,), and each of its pixels too (batch, 1, height, width), with a mean of 1 in each image: the
    masked loss of Avrahami et al. 2023 (Break-A-Scene, arXiv 2305.16311, eq. 1).
    """
    squares = (prediction.float() - wanted.float()).square()
    per_picture = (squares if place_weights is None else squares * place_weights).flatten(1).mean(1)
    if picture_weights is not None:
        per_picture = per_picture * picture_weights
    instance = per_picture[:num_instance].mean()
    if num_instance == len(per_picture):
        return Losses(instance, instance, None)
    prior = per_picture[num_instance:].mean()
    return Losses(instance + prior_loss_weight * prior, instance, prior)
