"""firewalld's zones: which addresses are bound to one as sources, and binding them.

firewalld decides about a packet by the zone that its source is bound to, before the zone of its interface. What is bound over
D-Bus is forgotten when firewalld reloads or starts anew.

Source: firewalld.dbus(5); the modules fw_zone and errors of firewalld 1.3.
"""

from cni_py.errors import CniError, InvalidNetworkConfig, warn
from cni_py.files import BUS, system_bus
from cni_py.firewalld.bus import DBUS, Bus, BusError, NoAnswer, NoBus, Question, Refused
from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "org.fedoraproject.FirewallD1"
ZONE = NAME, "/org/fedoraproject/FirewallD1", f"{NAME}.zone"
TRUSTED = "trusted"  # the zone that accepts everything
BUS_S = 3.0  # for the bus itself, which answers in less than a millisecond
DAEMON_S = 30.0  # for firewalld, which does one thing after another, and reloads for seconds
ZONE_MAX = 64  # characters; firewalld's own limit is 17


class NotRunning(CniError):
    """firewalld does not run here. Code 999."""


class Firewalld:
    """firewalld, over a bus of which we know that it is there."""

    __slots__ = ("bus",)

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    def __enter__(self) -> "Firewalld":
        return self

    def __exit__(self, *_: object) -> None:
        self.bus.__exit__()

    def _ask(
        self, member: str, words: "Sequence[Sequence[str]]", answer: str
    ) -> "list[str | int | list[str] | Refused]":
        return self.bus.ask(*(Question(ZONE, member, each, answer) for each in words))

    def bind(self, zone: str, source: str) -> bool:
        """Bind a source to a zone. False: it is already. CniError: it is bound to another zone, or firewalld refuses.

        InvalidNetworkConfig: there is no such zone.
        """
        (answer,) = self._ask("addSource", [(zone, source)], "s")
        if not isinstance(answer, Refused):
            return True
        reason = reason_of(answer)
        if reason == "ZONE_ALREADY_SET":
            return False
        if reason == "INVALID_ZONE":
            raise InvalidNetworkConfig(f'firewalld has no zone "{zone}" (firewalldZone)', answer.text)
        if reason == "ZONE_CONFLICT":
            (other,) = self._ask("getZoneOfSource", [(source,)], "s")
            name = other if isinstance(other, str) and is_zone(other) else "another"
            raise CniError(
                f"firewalld's zone {name} has {source} already, so it cannot be in the zone {zone}: somebody else bound it",
                f"firewall-cmd --zone={name} --remove-source={source}, or firewalldZone {name}",
            )
        raise CniError(f"firewalld does not bind {source} to its zone {zone}", str(answer))

    def release(self, zone: str, source: str) -> None:
        """Undo bind(). One that is not bound, or bound to another zone, is success; what firewalld refuses is a warning."""
        (answer,) = self._ask("removeSource", [(zone, source)], "s")
        if isinstance(answer, Refused) and reason_of(answer) not in ("UNKNOWN_SOURCE", "ZONE_CONFLICT", "INVALID_ZONE"):
            warn(f"firewalld leaves {source} in its zone {zone}: {answer}")

    def bound(self, zone: str, sources: "Sequence[str]") -> list[bool]:
        """Whether each of the sources is bound to the zone. CniError."""
        answers = self._ask("querySource", [(zone, source) for source in sources], "b")
        return [bool(_granted(answer, zone)) for answer in answers]

    def sources(self, zone: str) -> list[str]:
        """All that are bound to the zone; none when there is no such zone. CniError."""
        (answer,) = self._ask("getSources", [(zone,)], "as")
        if isinstance(answer, Refused) and reason_of(answer) == "INVALID_ZONE":
            return []
        found = _granted(answer, zone)
        return found if isinstance(found, list) else []


def _granted(answer: "str | int | list[str] | Refused", zone: str) -> "str | int | list[str]":
    if isinstance(answer, Refused):
        raise CniError(f"firewalld does not say what is in its zone {zone}", str(answer))
    return answer


def reason_of(refused: Refused) -> str:
    """firewalld's own code: its errors are one of D-Bus, and their text begins with it."""
    return refused.text.partition(":")[0]


def found(*, here: bool) -> Firewalld | None:
    """firewalld, if it runs. BusError, NoAnswer.

    `here`: only the one that filters the network namespace we run in.
    """
    place = system_bus()
    try:
        bus = Bus(place, BUS_S) if place else None
    except NoBus:
        bus = None
    if bus is None:
        return None
    try:
        owner, pid = bus.ask(
            Question(DBUS, "GetNameOwner", (NAME,), "s"),
            Question(DBUS, "GetConnectionUnixProcessID", (NAME,), "u"),
        )
        if isinstance(owner, Refused) or (here and not (isinstance(pid, int) and filters_here(pid))):
            bus.__exit__()
            return None
    except BaseException:
        bus.__exit__()
        raise
    bus.within(DAEMON_S)
    return Firewalld(bus)


def filters_here(pid: int) -> bool:
    """Whether a process is in our network namespace, or of another pid namespace, so that we cannot know.

    The one of a process that we may not look at is another one's, or we are in a user namespace: then firewalld is the host's.
    """
    try:
        theirs, ours = os.stat(f"/proc/{pid}/ns/net"), os.stat("/proc/self/ns/net")
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def serves() -> bool:
    """Whether firewalld runs here. Never an error: a bus that does not answer says so on stderr."""
    try:
        daemon = found(here=True)
    except (BusError, NoAnswer) as error:
        warn(f"whether firewalld runs is not known, so it is not asked: {error}")
        return False
    if daemon is None:
        return False
    daemon.bus.__exit__()
    return True


def needed() -> Firewalld:
    """firewalld. NotRunning when it does not run, BusError, NoAnswer."""
    daemon = found(here=False)
    if daemon is None:
        why = "" if system_bus() else f": there is no D-Bus (no {BUS}, no DBUS_SYSTEM_BUS_ADDRESS)"
        remedy = "systemctl start firewalld, or leave `backend` out of firewall's configuration"
        raise NotRunning(f"firewalld does not run{why}", remedy)
    return daemon


def is_zone(zone: str) -> bool:
    """Whether a text can be the name of a zone."""
    return 0 < len(zone) <= ZONE_MAX and all("!" <= each <= "~" for each in zone)


def check_zone(zone: str) -> None:
    """InvalidNetworkConfig for what cannot be the name of a zone."""
    if not is_zone(zone):
        raise InvalidNetworkConfig(f"not the name of a zone of firewalld: firewalldZone {zone!a:.80}")
