"""The command electra-data, also as python -m data_prep."""

import sys

from electra_flax.runtime.ctrl_c import hear


def main() -> int:
    """Runs the command of this process; returns its exit code."""
    hear("electra-data")
    from data_prep import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
