"""A user without rights, in a lab."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node import Node

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"]
PLACE = "/run/environment"


def python(node: Node) -> list[str]:
    """The words that start an interpreter with our package as nobody.

    The environment may lie in a folder that is closed to others (/root): it is shown at another place of the node.
    """
    show = f"mkdir -p {PLACE}; test -e {PLACE}/bin || mount --bind '{sys.prefix}' {PLACE}"
    node.run(["sh", "-ec", show], check=True)
    return [*NOBODY, f"{PLACE}/bin/python"]
