"""The bundled sample subject: five rendered images of one individual, to try everything with.

Made by `dreambooth.starter.subjects`, so the starter's training data never showed it; our own, under the project's
licence.
"""

from pathlib import Path

from dreambooth.config.concepts import Concept

# The arguments of `Subject`, held out from the judge's training too; image n is painted with seed n.
SAMPLE_SUBJECT = ("toy", "green", "pink", "star", "yellow")
SAMPLE_PX = 256
SAMPLE_CONTEXTS = ("sunflowers", "wooden floor", "snow", "beach", "mountain")


def sample_folder() -> Path:
    """Return the folder with the five images."""
    return Path(__file__).parent / "subject"


def sample_concept() -> Concept:
    """Return the sample subject with its prompts."""
    return Concept("photo of zwx toy", str(sample_folder()), "photo of toy")
