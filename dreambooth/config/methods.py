"""The training methods as the user sees them: their names and results."""

from dataclasses import dataclass

from dreambooth.config.training import MethodName


@dataclass(frozen=True)
class MethodWords:
    """A method's name in lists, and the sentence about its result, with placeholders for size and base."""

    title: str
    outcome: str


METHODS: dict[MethodName, MethodWords] = {
    "full": MethodWords("full", "A whole model{size}"),
    "lora": MethodWords("LoRA", "A LoRA{size}, that adds to {adds_to}"),
}


def outcome(method: MethodName, size: str, adds_to: str) -> str:
    """Return what a training by this method produces: `A LoRA, 19 MB, that adds to any SD 1.x checkpoint`.

    size: in words, or empty where it is not known.
    """
    return METHODS[method].outcome.format(size=f", {size}" if size else "", adds_to=adds_to)
