"""Example prompts by kind of subject, and the default negative prompt.

`{subject}` is the identifier with the class word, such as `zwx dog`. Also finds other tools' prompt syntax, which has
no meaning here.
"""

import re

from dreambooth.config.training import Kind

EXAMPLES: dict[Kind, tuple[str, ...]] = {
    "person": (
        "portrait photo of {subject}, soft window light",
        "photo of {subject} hiking in the mountains",
        "photo of {subject} in a suit, city street at night",
        "oil painting of {subject}",
        "pencil drawing of {subject}",
    ),
    "pet": (
        "photo of {subject} on the beach",
        "photo of {subject} in the snow",
        "photo of {subject} in a bucket",
        "photo of {subject} wearing a red hat",
        "watercolor painting of {subject}",
    ),
    "object": (
        "photo of {subject} on a wooden table",
        "photo of {subject} on the beach",
        "photo of {subject} in the jungle",
        "photo of {subject} with the Eiffel Tower in the background",
        "product photo of {subject}, white background",
    ),
    "style": (
        "a mountain lake, {subject}",
        "a cat on a windowsill, {subject}",
        "a busy market street, {subject}",
        "a bowl of fruit, {subject}",
        "a lighthouse in a storm, {subject}",
    ),
}
# The starter's own world is small: it cannot paint what it never saw.
TOY_EXAMPLES = (
    "photo of {subject} on the beach", "photo of {subject} in the snow", "photo of {subject} in the jungle",
    "photo of {subject} on a rug",
)  # fmt: skip
NEGATIVE_PROMPT = "blurry, low quality, deformed, extra limbs, watermark, text"

KIND_WORDS: dict[Kind, tuple[str, ...]] = {
    "person": ("person", "man", "woman", "boy", "girl", "child", "baby", "face"),
    "pet": ("dog", "cat", "bird", "horse", "rabbit", "hamster", "puppy", "kitten", "animal", "fish"),
    "style": ("style", "painting", "drawing", "illustration"),
}

OPENING = re.compile(r"^(?:(?:a|an|the)\s+)?(?:photo|picture|image)\s+of(?:\s+|$)", re.IGNORECASE)
# Weights, networks and breaks in AUTOMATIC1111's syntax: `(word:1.3)`, `<lora:name:1>`, `BREAK`.
OTHER_SYNTAX = re.compile(
    r"\([^()\n]{1,200}:\s{0,9}\d*\.?\d+\s{0,9}\)|<(?:lora|lyco|hypernet):[^<>\n]{1,200}>|\bBREAK\b"
)


def literal_notice(*prompts: str) -> str:
    """Return a notice on other tools' prompt syntax, which is read literally here; else an empty string."""
    found = list(dict.fromkeys(part for prompt in prompts for part in OTHER_SYNTAX.findall(prompt)))
    if not found:
        return ""
    shown = ", ".join(f'"{part}"' for part in found[:3]) + (" and more" if len(found) > 3 else "")
    return (
        f"The prompt is read literally: {shown} {'has' if len(found) == 1 else 'have'} no special meaning here. "
        "Remove everything that does not describe the picture."
    )


def subject_of(instance_prompt: str) -> str:
    """Return the identifier with its class word, taken from an instance prompt."""
    return OPENING.sub("", instance_prompt.strip()).strip()


def kind_of(*prompts: str) -> Kind:
    """Return the kind of subject these words name; an object if unknown."""
    words = {word.strip(",.").lower() for prompt in prompts for word in prompt.split()}
    found = [kind for kind, known in KIND_WORDS.items() if words & set(known)]
    return "style" if "style" in found else found[0] if found else "object"


def example_prompts(kind: Kind, instance_prompt: str, *, is_toy: bool = False) -> list[str]:
    """Return example prompts for a subject that was trained with these words."""
    subject = subject_of(instance_prompt)
    return [example.format(subject=subject) for example in (TOY_EXAMPLES if is_toy else EXAMPLES[kind])]
