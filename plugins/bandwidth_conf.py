"""The configuration of bandwidth: conf/bandwidth.conflist. Rates in bits/s and bursts in bits, of 0 when there is no limit."""

from cni_py.errors import CniError
from cni_py.netconf import MISSING, Undecodable, child, lookup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.jsontext import Object
    from cni_py.netconf import NetConf

KEYS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
BURST_MAX = (1 << 32) - 1  # bytes; this one itself is refused, as by the Go plugin


class BandwidthConf:
    """What the container may receive (`ingress`) and send (`egress`): bytes/s and bytes at once; None: no limit."""

    __slots__ = ("egress", "ingress")

    def __init__(self, conf: "NetConf") -> None:
        runtime = child(conf.runtime_config, "bandwidth") if conf.runtime_config is not None else None
        source = conf.raw
        if runtime is not None and all(lookup(conf.raw, key) is MISSING for key in KEYS):
            source = runtime
        values = {key: unsigned(source, key) for key in KEYS}
        self.ingress = bucket(values["ingressRate"], values["ingressBurst"])
        self.egress = bucket(values["egressRate"], values["egressBurst"])
        _ = conf.prev_result  # of a wrong type: refused like any other key


def unsigned(obj: "Object", name: str) -> int:
    """A number that is not negative, 0 when there is none."""
    value = lookup(obj, name)
    if value is MISSING:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise Undecodable(f"json: cannot unmarshal {value!r} into field {name} of type uint64")
    return value


def bucket(rate: int, burst: int) -> tuple[int, int] | None:
    """The limit, of bits made bytes."""
    if not rate and not burst:
        return None
    if not burst:
        raise CniError("if rate is set, burst must also be set")
    if not rate:
        raise CniError("if burst is set, rate must also be set")
    if burst // 8 >= BURST_MAX:
        raise CniError("burst cannot be more than 4GB")
    return rate // 8, burst // 8
