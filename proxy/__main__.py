"""The entry point of `pannier` and `python -m proxy`; `proxy.cli` does the rest.

Importing that, and what a sidecar needs, takes most of a second. Signals that come meanwhile are minded here.
"""

import sys

from proxy import hangup


def main() -> int:
    """Run the command line; the exit status."""
    hangup.remember()
    from proxy import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
