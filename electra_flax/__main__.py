"""python -m electra_flax: the command electra-flax where its script is not on the path."""

import sys

from electra_flax.cli import main

if __name__ == "__main__":
    sys.exit(main())
