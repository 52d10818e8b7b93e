"""What a process that lives as long as its host does not load."""

import sys


def without_tls() -> None:
    """Leave OpenSSL out, to be called before asyncio is imported, which gets on without it: 2 MB of 19."""
    for name in ("ssl", "_hashlib"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None makes an import fail: importlib's documented way
