"""python -m data_prep: the command electra-data where its script is not on the path."""

import sys

from data_prep.cli import main

if __name__ == "__main__":
    sys.exit(main())
