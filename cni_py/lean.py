"""`from cni_py.lean import os`: the standard module where it is loaded already, as in commands; else os_lean, which costs less.

For every module that a call of a plugin loads. Type checkers see the standard module.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING or "os" in sys.modules:
    import os
else:
    from cni_py import os_lean as os

__all__ = ["os"]
