"""The versions of the CNI specification, their order, and their families.

A family is the versions whose results have one form (SPEC.md, appendix on results; libcni's types/020, 040 and 100).
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
OLDEST = {"bandwidth": "0.3.0", "firewall": "0.4.0", "vrf": "0.3.1"}  # as the Go plugins; others: all
FAMILIES = (("0.1.0", "0.2.0"), ("0.3.0", "0.3.1", "0.4.0"), ("1.0.0", "1.1.0"))


def parse(text: str) -> tuple[int, int, int]:
    """Major, minor, micro. A missing part is 0, and "" is 0.1.0. DecodingFailure for anything else."""
    if not text:
        return (0, 1, 0)
    parts = text.split(".")
    if len(parts) > 3 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        from cni_py.errors import DecodingFailure  # not above: VERSION is to load nothing but this module

        raise DecodingFailure(f'cniVersion must be a version such as "{SUPPORTED[-1]}", not "{text}"')
    major, minor, micro = (int(part) for part in [*parts, "0", "0"][:3])
    return (major, minor, micro)


def at_least(version: str, floor: str) -> bool:
    return parse(version) >= parse(floor)


def family(version: str) -> tuple[str, ...]:
    """The versions whose results have the form of those of `version`; none for a version that we do not know."""
    for members in FAMILIES:
        if (version or "0.1.0") in members:
            return members
    return ()


def spoken_by(plugin: str) -> tuple[str, ...]:
    """The versions that a plugin of ours speaks, oldest first."""
    return SUPPORTED[SUPPORTED.index(OLDEST.get(plugin, SUPPORTED[0])) :]


def reply(supported: "Sequence[str]" = SUPPORTED) -> str:
    """The answer to VERSION in one line (SPEC.md section 2). cniVersion is the newest that we know, as with the Go plugins."""
    listed = '","'.join(supported)
    return f'{{"cniVersion":"{SUPPORTED[-1]}","supportedVersions":["{listed}"]}}\n'
