"""The command electra-data, also as python -m data_prep."""

import sys

from electra_flax.runtime.ctrl_c import hear


def main() -> int:
    """Run the command of this process; return its exit code."""
    hear("electra-data")
    from data_prep import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
