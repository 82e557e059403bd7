"""DreamBooth Studio's engine: teach Stable Diffusion a subject from a few photos.

from dreambooth import Concept, TrainingConfig, GenerationConfig, train, generate
"""

from typing import TYPE_CHECKING, Any

from dreambooth.concepts import Concept
from dreambooth.config import GenerationConfig, TrainingConfig
from dreambooth.errors import DreamBoothError

if TYPE_CHECKING:
    from dreambooth.pictures import compare, generate
    from dreambooth.runs import resume, train

__all__ = ["Concept", "DreamBoothError", "GenerationConfig", "TrainingConfig", "compare", "generate", "resume", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # These stand on everything else: imported when first used, so that `import dreambooth` stays cheap.
    if name in ("train", "resume"):
        from dreambooth import runs

        return getattr(runs, name)
    if name in ("compare", "generate"):
        from dreambooth import pictures

        return getattr(pictures, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
