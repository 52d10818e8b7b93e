"""rtnetlink: the rules of policy routing (ip rule), which tell in which tables a packet's route is looked up.

Of the network namespace that an Rtnl socket (`side`) is in. As in kernel/rtnl.py a function is one request, a delete that
finds nothing returns False, and every other refusal is an OSError with the kernel's words.

Sources: ip-rule(8), Linux include/uapi/linux/fib_rules.h, net/core/fib_rules.c.
"""

import _struct
import errno

from cni_py.addr import Address
from cni_py.kernel.netlink import NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, attr, attrs, number, u32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.rtnl import Rtnl

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34  # rtnetlink.h
FRA_SRC, FRA_PRIORITY, FRA_TABLE = 2, 6, 15  # fib_rules.h
FR_ACT_TO_TBL = 1
_AF = {4: 2, 6: 10}  # AF_INET, AF_INET6
_RULE = _struct.Struct("=BBBBBxxBI")  # family, dst and src length, tos, table, action, flags
_RT_TABLE_COMPAT = 252


class Rule:
    """A rule as the kernel showed it. `source` None: packets from everywhere. `table` 0: the rule leads to none."""

    __slots__ = ("priority", "source", "table")

    def __init__(self, body: bytes) -> None:
        _, _, length, _, table, _, _ = _RULE.unpack_from(body)
        found = attrs(body[_RULE.size :])
        self.source = Address(found[FRA_SRC], length) if FRA_SRC in found else None
        self.table: int = number(found[FRA_TABLE]) if FRA_TABLE in found else table
        self.priority = number(found.get(FRA_PRIORITY))


def rules(side: "Rtnl", family: int = 0) -> list[Rule]:
    """The rules of one family, or (0) of both. OSError EOPNOTSUPP where the kernel has no rules for any of them."""
    found: list[Rule] = []
    lacking: OSError | None = None
    wanted = (family,) if family else (4, 6)
    for each in wanted:
        try:
            answers = side.request(RTM_GETRULE, NLM_F_DUMP, _RULE.pack(_AF[each], 0, 0, 0, 0, 0, 0))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                raise
            lacking = error
            continue
        # For a family that has no rules at all the kernel may answer for those that have (rtnetlink_rcv_msg())
        found += [Rule(answer) for kind, answer in answers if kind == RTM_NEWRULE and answer[0] == _AF[each]]
    if lacking is not None and not found:
        raise OSError(errno.EOPNOTSUPP, str(lacking.strerror)) from lacking
    return found


def add_rule(side: "Rtnl", source: Address, table: int) -> None:
    """A rule for packets from `source`, before those that are there but for that of the local addresses: the kernel gives it
    the priority (fib_default_rule_pref()). FileExistsError when there is one like it.
    """
    side.request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, _body(source, table))


def delete_rule(side: "Rtnl", source: Address, table: int) -> bool:
    """Delete one. False when there is none."""
    return side.delete(RTM_DELRULE, _body(source, table), (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT))


def _body(source: Address, table: int) -> bytes:
    small = table if table < 256 else _RT_TABLE_COMPAT
    head = _RULE.pack(_AF[source.family], 0, source.prefixlen, 0, small, FR_ACT_TO_TBL, 0)
    return head + attr(FRA_SRC, source.packed) + attr(FRA_TABLE, u32(table))
