"""How many pictures a second the starter's worlds paint: `python -m benchmarks.rendering [--json FILE]`.

The plain world is painted picture by picture by Pillow, the rich one many at a time from its atlas; both in one
process, on one thread, in time of the processor. Drawing the scenes is counted; building the atlas is a row of its own.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from dreambooth.starter import rendering
from dreambooth.starter.worlds import WORLDS, RichWorld


def main() -> None:
    """Print the table, and write the figures."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.rendering", description=__doc__)
    parser.add_argument("--pictures", type=int, default=256, help="How many of each, half of them unmeasured first.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write the figures there too.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for size_px in (64, 128):
        started_s = time.process_time()
        rendering.render([RichWorld().scene(0, 0)[:2]], size_px)
        figures[f"atlas at {size_px} px, s"] = round(time.process_time() - started_s, 2)
        for name, world in WORLDS.items():
            world.pictures(1, range(arguments.pictures // 2), size_px)
            started_s = time.process_time()
            world.pictures(2, range(arguments.pictures), size_px)
            rate = arguments.pictures / (time.process_time() - started_s)
            figures[f"{name} world at {size_px} px, pictures/s"] = round(rate, 1)
    for name, value in figures.items():
        print(f"{name:40} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
