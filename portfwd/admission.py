"""Who may connect: the allow list, and the limits on connections at a time. Pure."""

from __future__ import annotations

import ipaddress

from portfwd.mapping import Mapping

REMEMBERED_MAX = 4096  # clients whose answer from the allow list is kept


class Admission:
    """The allow list and limits of one mapping, and who is in."""

    __slots__ = ("_allowed", "_judged", "_per_client", "_present", "limit", "present")

    def __init__(self, mapping: Mapping, limit: int) -> None:
        self.limit = mapping.limit or limit
        self._per_client = mapping.limit_per_client
        self._allowed = [ipaddress.ip_network(text) for text in mapping.allow]
        self._judged: dict[str, bool] = {}
        self._present: dict[str, int] = {}  # only kept where there is a limit per client
        self.present = 0

    def allows(self, ip: str) -> bool:
        """Whether the allow list lets a client in; `ip` may have a zone."""
        if not self._allowed:
            return True
        known = self._judged.get(ip)
        if known is None:
            if len(self._judged) >= REMEMBERED_MAX:
                self._judged.clear()
            address = ipaddress.ip_address(ip.partition("%")[0])
            known = self._judged[ip] = any(address in network for network in self._allowed)
        return known

    def enter(self, ip: str) -> bool:
        """Count a client in, or return False because a limit is reached."""
        if self.present >= self.limit:
            return False
        if self._per_client:
            here = self._present.get(ip, 0)
            if here >= self._per_client:
                return False
            self._present[ip] = here + 1
        self.present += 1
        return True

    def leave(self, ip: str) -> None:
        """Count a client out."""
        self.present -= 1
        if self._per_client and ip in self._present:
            left = self._present[ip] - 1
            if left > 0:
                self._present[ip] = left
            else:
                del self._present[ip]

    def successor(self, mapping: Mapping, limit: int) -> Admission:
        """The same clients under the rules of a changed mapping."""
        after = Admission(mapping, limit)
        after.present = self.present
        after._present = dict(self._present) if mapping.limit_per_client and self._per_client else {}
        return after
