"""DreamBooth Studio's engine: train Stable Diffusion on a subject from a few photos.

from dreambooth import Concept, TrainingConfig, GenerationConfig, train, generate
"""

import sys

# Checked before importing anything that an older Python lacks: a clone can be run without pip, which would refuse it.
# For ruff the comparison is always false, since pyproject.toml requires 3.11.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"DreamBooth Studio needs Python 3.11, 3.12 or 3.13; this is {sys.version_info[0]}.{sys.version_info[1]}.")

from typing import TYPE_CHECKING, Any

from dreambooth.config.concepts import Concept
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import DreamBoothError

if TYPE_CHECKING:
    from dreambooth.pictures.painter import compare, generate
    from dreambooth.runs.run import resume, train

__all__ = ["Concept", "DreamBoothError", "GenerationConfig", "TrainingConfig", "compare", "generate", "resume", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on first use, because these import everything else and `import dreambooth` should stay cheap.
    if name in ("train", "resume"):
        from dreambooth.runs import run

        return getattr(run, name)
    if name in ("compare", "generate"):
        from dreambooth.pictures import painter

        return getattr(painter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
