"""python -m portfwd."""

from __future__ import annotations

import sys

from portfwd.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
