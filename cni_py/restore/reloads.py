"""What firewalld says of itself over D-Bus: that it has reloaded, or runs anew. By then it has forgotten containers' addresses.

They say where to look, no more. A bus that was there and has gone is looked for again every RETRY_S; one that was never there is
looked for when there is something else to read: a host without D-Bus has no timer.
"""

import time

from cni_py.errors import CniError
from cni_py.files import system_bus
from cni_py.firewalld import zones
from cni_py.firewalld.bus import DBUS, INTERFACE, MEMBER, SIGNAL, Bus, Message, Question

RULES = (
    f"type='signal',path='/org/fedoraproject/FirewallD1',interface='{zones.NAME}',member='Reloaded'",
    f"type='signal',sender='{DBUS[0]}',member='NameOwnerChanged',arg0='{zones.NAME}'",
)
RETRY_S = 30.0


class Reloads:
    """A connection that listens; `said` is whether firewalld has reloaded or started since take()."""

    __slots__ = ("bus", "is_lost", "next_try", "said")

    def __init__(self) -> None:
        self.bus: Bus | None = None
        self.next_try = 0.0
        self.said = self.is_lost = False
        self.connect()
        self.said = False  # the first look sees all

    def fileno(self) -> int:
        """To wait for, -1 without a connection."""
        return self.bus.sock.fileno() if self.bus is not None else -1

    def connect(self) -> None:
        """Ask for the signals, if there is a bus. What was said before is not known, so that counts as a reload."""
        self.next_try = time.monotonic() + RETRY_S
        place = system_bus()
        if not place:
            return
        try:
            bus = Bus(place, zones.BUS_S)
        except CniError:
            return
        self.bus, self.is_lost = bus, True  # once it is closed
        try:
            bus.ask(*(Question(DBUS, "AddMatch", (rule,), "") for rule in RULES))
        except CniError:
            self.close()
            return
        self.said = True

    def read(self) -> None:
        """Take in what there is to read; try to connect when it is time."""
        if self.bus is None and time.monotonic() >= self.next_try:
            self.connect()
        if self.bus is None:
            return
        try:
            for message in self.bus.waiting():
                self.said = self.said or tells(message)
        except (OSError, ValueError):  # the bus has gone, or was none
            self.close()

    def take(self) -> bool:
        """Whether firewalld has reloaded or started since the last time."""
        said, self.said = self.said, False
        return said

    def close(self) -> None:
        """End the connection."""
        if self.bus is not None:
            self.bus.sock.close()
            self.bus = None


def tells(message: Message) -> bool:
    """Whether a message says that firewalld has reloaded or started. Pure."""
    about = message.kind == SIGNAL, message.fields.get(INTERFACE), message.fields.get(MEMBER)
    if about == (True, zones.NAME, "Reloaded"):
        return True
    if about != (True, DBUS[2], "NameOwnerChanged"):
        return False
    name, _, owner = message.texts(3)
    return name == zones.NAME and owner != ""  # it has gone otherwise
