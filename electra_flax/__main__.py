"""The command electra-flax, also as python -m electra_flax."""

import sys

from electra_flax.runtime.ctrl_c import hear


def main() -> int:
    """Run the command of this process; return its exit code."""
    hear("electra-flax")
    from electra_flax.commands import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
