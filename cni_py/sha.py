"""SHA-2 from the interpreter's C modules: importing hashlib would cost every call 4 ms."""

try:
    from _sha256 import sha256
except ImportError:  # Python 3.12 and newer
    from _sha2 import sha256

__all__ = ("sha256", "sha512_hex")


def sha512_hex(text: str) -> str:
    """The digest, in hexadecimal, that the Go plugins make names of chains and devices from."""
    try:
        from _sha512 import sha512
    except ImportError:  # Python 3.12 and newer
        from _sha2 import sha512
    digest: str = sha512(text.encode("utf-8", "surrogateescape")).hexdigest()
    return digest
