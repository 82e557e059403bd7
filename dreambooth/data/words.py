"""The words for a subject: identifier, class word, and the prompts made of them."""

from dataclasses import dataclass
from typing import get_args

from dreambooth.config.training import Kind

DEFAULT_IDENTIFIER = "zwx"
DEFAULT_CLASS_WORDS: dict[Kind, str] = {"person": "person", "pet": "dog", "object": "toy", "style": "painting"}
USUAL_PATTERN = ("photo of {identifier} {class_word}", "photo of {class_word}")
PROMPT_PATTERNS = {"style": ("{class_word} in {identifier} style", "{class_word}")}
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Words:
    """What the subject is called: a unique identifier, its class, and the two prompts made of them."""

    kind: Kind = "pet"
    identifier: str = DEFAULT_IDENTIFIER
    class_word: str = "dog"
    instance_prompt: str = "photo of zwx dog"
    class_prompt: str = "photo of dog"


def prompts_for(kind: str, identifier: str, class_word: str) -> tuple[str, str]:
    """Return the instance prompt and the class prompt for these words; without a class there is no class prompt."""
    words = {"identifier": identifier.strip(), "class_word": class_word.strip()}
    instance, of_class = (" ".join(one.format(**words).split()) for one in PROMPT_PATTERNS.get(kind, USUAL_PATTERN))
    return instance, of_class if words["class_word"] else ""
