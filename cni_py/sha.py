"""SHA-2 as the interpreter's own modules have it: the package hashlib would cost a start 4 ms."""

try:
    from _sha256 import sha256
except ImportError:  # Python 3.12 and newer
    from _sha2 import sha256

__all__ = ("sha256", "sha512_hex")


def sha512_hex(text: str) -> str:
    """The digest of which the Go plugins' names of chains and devices are made."""
    try:
        from _sha512 import sha512
    except ImportError:  # Python 3.12 and newer
        from _sha2 import sha512
    digest: str = sha512(text.encode("utf-8", "surrogateescape")).hexdigest()
    return digest
