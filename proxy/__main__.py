"""`python -m proxy`: the same program as the `pannier` command."""

import sys

from proxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
