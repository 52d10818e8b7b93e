"""libnftables, through the netfilter project's own Python module: it makes tables, chains and rules.

Loading it takes 18 to 22 ms, half of an ADD, so a call loads it only when a chain or table is missing.
"""

import sys

from cni_py.errors import CniError
from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

# Where distributions put the module (Debian: python3-nftables). Not from elsewhere on sys.path: PyPI has a stale copy.
FOLDERS = ("/usr/lib/python3/dist-packages", f"/usr/lib/python3.{sys.version_info[1]}/site-packages")
LIBRARY = "libnftables.so.1"  # as the module names it


def run(text: str) -> None:
    """Run the commands of `text`, one a line, as one transaction. CniError with all of them when nft refuses one.

    `text` must be made of constants and of values whose characters have been checked.
    """
    status, _, refusal = binding().Nftables().cmd(text)
    if status != 0:
        # nft's caret can point at the wrong line of several: show them all.
        raise CniError("nftables refused a change of its table cni_py", f"{str(refusal).strip()}\nin:\n{text.strip()}")


def binding() -> "ModuleType":
    """The module `nftables`, also when the interpreter is not the distribution's. CniError when it is not installed."""
    from ctypes import CDLL
    from importlib.util import module_from_spec, spec_from_file_location

    if "nftables" in sys.modules:
        return sys.modules["nftables"]
    for folder in FOLDERS:
        path = f"{folder}/nftables/__init__.py"
        spec = spec_from_file_location("nftables", path) if os.path.exists(path) else None
        if spec is None or spec.loader is None:
            continue
        module = module_from_spec(spec)
        sys.modules["nftables"] = module  # before it runs, since it imports its own submodule
        try:
            spec.loader.exec_module(module)
            CDLL(LIBRARY)  # where that fails, __del__() of a half made Nftables fails as well, with a traceback
            module.Nftables()
        except (ImportError, OSError, AttributeError) as error:
            del sys.modules["nftables"]
            raise _missing(str(error)) from error
        return module
    raise _missing(f"looked in {', '.join(FOLDERS)}")


def _missing(why: str) -> CniError:
    return CniError("libnftables and its Python module are needed (Debian: apt install python3-nftables)", why)
