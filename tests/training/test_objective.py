"""The loss against values worked out by hand and against diffusers' own scheduler."""

import pytest
import torch

from dreambooth.errors import BaseModelError
from dreambooth.training import objective


def test_noised_is_equation_4_of_ddpm() -> None:
    clean, noise = torch.full((2, 1, 1, 1), 2.0), torch.full((2, 1, 1, 1), 10.0)
    noisy = objective.noised(clean, noise, torch.tensor([0.36, 1.0]))
    # sqrt(0.36) * 2 + sqrt(0.64) * 10 = 1.2 + 8
    assert noisy.flatten().tolist() == pytest.approx([9.2, 2.0])


def test_targets_agree_with_diffusers() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    clean, noise = torch.randn(2, 3, 4, 4, 4).unbind(0)
    timesteps = torch.tensor([3, 500, 999])
    level = scheduler.alphas_cumprod[timesteps]
    torch.testing.assert_close(objective.noised(clean, noise, level), scheduler.add_noise(clean, noise, timesteps))
    velocity = objective.target(clean, noise, level, "v_prediction")
    torch.testing.assert_close(velocity, scheduler.get_velocity(clean, noise, timesteps))
    assert objective.target(clean, noise, level, "epsilon") is noise


def test_prior_is_weighted_and_averaged_apart_from_the_photos() -> None:
    prediction = torch.tensor([1.0, 3.0, 2.0]).view(3, 1, 1, 1)
    losses = objective.prior_preservation(prediction, torch.zeros(3, 1, 1, 1), 2, 0.5)
    assert losses.instance.item() == 5.0  # (1 + 9) / 2
    assert losses.prior is not None
    assert losses.prior.item() == 4.0
    assert losses.total.item() == 7.0


def test_without_class_pictures_there_is_no_prior() -> None:
    losses = objective.prior_preservation(torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), 2, 9.0)
    assert losses.prior is None
    assert losses.total.item() == losses.instance.item() == 1.0


def test_min_snr_weights_are_those_of_the_paper() -> None:
    level = torch.tensor([0.9, 0.5, 0.1])  # SNR 9, 1, 1/9
    weights = objective.min_snr_weights(level, 3.0, "epsilon")
    assert weights.tolist() == pytest.approx([3 / 9, 1, 1])
    weights = objective.min_snr_weights(level, 3.0, "v_prediction")
    assert weights.tolist() == pytest.approx([3 / 10, 1 / 2, 1 / 10])


def test_each_picture_counts_by_its_own_weight_subject_and_class_apart() -> None:
    prediction = torch.tensor([1.0, 3.0, 2.0]).view(3, 1, 1, 1)
    weights = torch.tensor([1.0, 0.5, 0.25])
    losses = objective.prior_preservation(prediction, torch.zeros(3, 1, 1, 1), 2, 1.0, weights)
    assert losses.prior is not None
    assert (losses.instance.item(), losses.prior.item()) == (2.75, 1.0)  # (1 + 9/2) / 2, 4/4


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(BaseModelError, match="sample"):
        objective.checked_prediction_type("sample")


def test_zero_terminal_snr_is_algorithm_1_and_that_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    shared = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    plain = DDPMScheduler(**shared).alphas_cumprod
    theirs = DDPMScheduler(**shared, rescale_betas_zero_snr=True).alphas_cumprod
    ours = objective.zero_terminal_snr(plain)
    assert ours[0].item() == pytest.approx(plain[0].item())
    assert ours[-1].item() == 0.0
    torch.testing.assert_close(ours[:-1], theirs[:-1])  # they put 2 ** -24 in the last one's place
    # By hand: sqrt gives 0.9, 0.5, 0.1; less 0.1 and times 0.9 / 0.8: 0.9, 0.45, 0
    moved = objective.zero_terminal_snr(torch.tensor([0.81, 0.25, 0.01]))
    assert moved.tolist() == pytest.approx([0.81, 0.2025, 0.0], abs=1e-7)


def test_a_noise_offset_shifts_each_channel_of_a_picture_as_a_whole() -> None:
    noise, shift = torch.zeros(2, 3, 3), torch.tensor([2.0, -4.0]).view(2, 1, 1)
    shifted = objective.offset_noise(noise, shift, 0.1)
    assert shifted[0].unique().tolist() == pytest.approx([0.2])
    assert shifted[1].unique().tolist() == pytest.approx([-0.4])


def test_places_count_by_their_own_weight() -> None:
    prediction = torch.tensor([[1.0, 3.0], [2.0, 2.0]]).view(2, 1, 1, 2)
    weights = torch.tensor([[2.0, 0.0], [1.0, 1.0]]).view(2, 1, 1, 2)
    losses = objective.prior_preservation(prediction, torch.zeros(2, 1, 1, 2), 1, 1.0, None, weights)
    assert losses.prior is not None
    assert (losses.instance.item(), losses.prior.item()) == (1.0, 4.0)  # (2 * 1 + 0 * 9) / 2, (4 + 4) / 2
