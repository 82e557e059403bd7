"""The bundled sample subject: five rendered pictures of one individual, to try everything with.

Made by `dreambooth.starter.subjects`, so the starter's training world has never shown it; our own, under the project's
licence.
"""

from pathlib import Path

from dreambooth.config import Concept

SAMPLE_CONTEXTS = ("grass", "wooden floor", "snow", "beach", "white")


def sample_folder() -> Path:
    """Return the folder with the five pictures."""
    return Path(__file__).parent / "subject"


def sample_concept() -> Concept:
    """Return the sample subject with its words."""
    return Concept("photo of zwx toy", str(sample_folder()), "photo of toy")
