"""SHA-256 as the interpreter's own module has it: the package hashlib would cost a start 4 ms."""

try:
    from _sha256 import sha256
except ImportError:  # Python 3.12 and newer
    from _sha2 import sha256

__all__ = ("sha256",)
