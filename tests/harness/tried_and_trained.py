"""Try a run, then make it, with the arguments of `train`: started as one of several processes."""

import sys

from dreambooth.commands.cli import main

if __name__ == "__main__":
    place = sys.argv.index("--output_dir")
    tried = main(["preflight", *sys.argv[1:place], *sys.argv[place + 2 :]])
    sys.exit(tried or main(["train", *sys.argv[1:]]))
