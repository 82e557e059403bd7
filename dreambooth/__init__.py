"""DreamBooth Studio's engine: teach Stable Diffusion a subject from a few photos.

from dreambooth import Concept, TrainingConfig, GenerationConfig, train, generate
"""

from typing import TYPE_CHECKING, Any

from dreambooth.config import Concept, GenerationConfig, TrainingConfig
from dreambooth.errors import DreamBoothError

if TYPE_CHECKING:
    from dreambooth.jobs import generate, train

__all__ = ["Concept", "DreamBoothError", "GenerationConfig", "TrainingConfig", "generate", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # train and generate stand on everything else: imported when first used, so that `import dreambooth` stays cheap.
    if name in ("train", "generate"):
        from dreambooth import jobs

        return getattr(jobs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
