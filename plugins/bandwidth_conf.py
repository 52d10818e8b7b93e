"""The configuration of bandwidth: conf/bandwidth.conflist.

Rates in bits/s and bursts in bits; 0 is no limit. They stand in the plugin's own object, or (all of them) in the capability
`bandwidth` of runtimeConfig. The networks to which the limits apply, or do not, may stand in the plugin's own object beside
rates of the runtime, which knows rates alone.
"""

from cni_py.addr import parse_address
from cni_py.errors import InvalidNetworkConfig
from cni_py.protocol.netconf import MISSING, Missing, child, lookup, strings, undecodable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.gojson import Object
    from cni_py.protocol.netconf import NetConf

UNSHAPED, SHAPED = "unshapedSubnets", "shapedSubnets"
KEYS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
# Bytes, 32 bits in the kernel's tc_tbf_qopt; this very number is refused, as by the Go plugin
BURST_MAX = (1 << 32) - 1


class BandwidthConf:
    """What the container may receive (`ingress`) and send (`egress`): (bytes/s, bytes of a burst), or None for no limit.

    `unshaped`: networks to which the limits do not apply. `shaped`: those to which alone they apply. Read by check().
    """

    __slots__ = ("egress", "ingress", "shaped", "unshaped")

    def __init__(self, conf: "NetConf") -> None:
        runtime = child(conf.runtime_config, "bandwidth") if conf.runtime_config is not None else None
        source = conf.raw
        if runtime is not None and all(lookup(conf.raw, key) is MISSING for key in KEYS):
            source = runtime
        values = {key: unsigned(source, key) for key in KEYS}
        self.ingress = bucket("ingress", values["ingressRate"], values["ingressBurst"])
        self.egress = bucket("egress", values["egressRate"], values["egressBurst"])
        given = source if any(strings(source, key) for key in (UNSHAPED, SHAPED)) else conf.raw
        self.unshaped = strings(given, UNSHAPED)
        self.shaped = strings(given, SHAPED)
        _ = conf.prev_result  # read, so that one of a wrong type is refused like any other key

    def check(self) -> None:
        """InvalidNetworkConfig for a limit of 0 bytes, which the kernel would refuse when half of the plan is applied, and for
        texts that are no networks.
        """
        for limit in (self.ingress, self.egress):
            if limit is not None and 0 in limit:
                raise InvalidNetworkConfig("rates and bursts are in bits, and cannot be below 8")
        if self.unshaped and self.shaped:
            raise InvalidNetworkConfig(
                f"{UNSHAPED} and {SHAPED} cannot be both specified, one of them should be discarded"
            )
        for key, texts in ((UNSHAPED, self.unshaped), (SHAPED, self.shaped)):
            for text in texts:
                try:
                    parse_address(text)
                except ValueError as error:
                    raise InvalidNetworkConfig(f'bad subnet "{text}" provided in {key}: {error}') from error

    @property
    def networks(self) -> list[str]:
        """Those of both keys, each once, in the form ADDRESS/LENGTH."""
        texts = self.unshaped or self.shaped
        return list(dict.fromkeys(str(parse_address(text).network()) for text in texts))


def unsigned(obj: "Object", name: str) -> int:
    """The number under a key, from 0 to 2^64-1; 0 when it is missing."""
    value = lookup(obj, name)
    if isinstance(value, Missing):
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise undecodable(value, name, "a whole number of bits, from 0 to 2^64-1")
    return value


def bucket(direction: str, rate: int, burst: int) -> tuple[int, int] | None:
    """The limit in bytes/s and bytes, from bits; None where both are 0. InvalidNetworkConfig for one without the other."""
    if not rate and not burst:
        return None
    if not burst:
        raise InvalidNetworkConfig(f"if rate is set, burst must also be set ({direction}Burst is missing)")
    if not rate:
        raise InvalidNetworkConfig(f"if burst is set, rate must also be set ({direction}Rate is missing)")
    if burst // 8 >= BURST_MAX:
        raise InvalidNetworkConfig(f"burst cannot be more than 4GB ({direction}Burst is in bits)")
    return rate // 8, burst // 8
