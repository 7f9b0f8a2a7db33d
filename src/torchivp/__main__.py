"""`python -m torchivp`: the command `torchivp`."""

import sys

from torchivp.cli import main

if __name__ == "__main__":
    sys.exit(main())
