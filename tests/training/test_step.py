"""A step that is recorded for replay does the work of a plain one."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tests.harness.trained import Run, moved


class Replayed:
    """Stands in for a CUDA graph: the recorded work sees copies of its inputs, and of nothing else of the batch."""

    made: int = 0

    def __init__(self, work: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]) -> None:
        type(self).made += 1
        self._work = work

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return self._work([tensor.clone() for tensor in inputs])


@pytest.mark.parametrize("prior", [False, True])
def test_a_recorded_step_does_what_a_plain_one_does_and_is_recorded_anew_for_a_frozen_text_encoder(
    make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, prior: bool
) -> None:
    settings: dict[str, Any] = {
        "train_text_encoder": True, "text_encoder_stop_step": 2, "max_train_steps": 3, "with_prior_preservation": prior,
    }  # fmt: skip
    plain, recorded = make(**settings), make(**settings)
    plain.train()
    Replayed.made = 0
    with monkeypatch.context() as patch:
        patch.setattr("dreambooth.training.step.CapturedWork", Replayed)
        patch.setattr("dreambooth.training.trainer.can_record", lambda *_: True)
        recorded.train()
    assert Replayed.made == 2
    assert recorded.losses == plain.losses
    for part in ("unet", "text_encoder"):
        assert moved(plain.weights(part), recorded.weights(part)) == 0
