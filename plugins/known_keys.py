"""All keys that our plugins know, so that commands can point out a misspelt one. Never loaded by a plugin's call.

A key maps to the keys of its value: an object, or a list (of lists) of objects. It maps to None where the value is neither, or
has keys that are free or that the plugin checks itself. A test compares the table with the keys that the plugins read.
"""

Keys = dict[str, "Keys | None"]

ROUTE: Keys = dict.fromkeys(("dst", "gw", "mtu", "advmss", "priority", "table", "scope"))
DNS: Keys = dict.fromkeys(("nameservers", "domain", "search", "options"))
RANGE: Keys = dict.fromkeys(("subnet", "rangeStart", "rangeEnd", "gateway", "exclude"))

LIST: Keys = {  # of the whole list: libcni's own
    **dict.fromkeys(("cniVersion", "cniVersions", "name", "disableCheck", "disableGC", "loadOnlyInlinedPlugins")),
    "plugins": None,
}
COMMON: Keys = {  # of every plugin: the specification's, and `log`, which cni_py/attachment/log.py reads
    **dict.fromkeys(
        ("cniVersion", "name", "type", "capabilities", "runtimeConfig", "prevResult", "args", "ipam", "log")
    ),
    "dns": DNS,
}
CAPABILITIES: Keys = dict.fromkeys(
    ("portMappings", "ips", "ipRanges", "mac", "bandwidth", "dns", "deviceID", "io.kubernetes.cri.pod-annotations")
)
PLUGINS: dict[str, Keys] = {
    "bandwidth": dict.fromkeys(
        ("ingressRate", "ingressBurst", "egressRate", "egressBurst", "unshapedSubnets", "shapedSubnets")
    ),
    "bridge": {
        **dict.fromkeys(("bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "mtu")),
        **dict.fromkeys(("hairpinMode", "promiscMode", "vlan", "preserveDefaultVlan", "macspoofchk", "enabledad")),
        **dict.fromkeys(("disableContainerInterface", "portIsolation")),
        "vlanTrunk": dict.fromkeys(("id", "minID", "maxID")),
    },
    "chain": dict.fromkeys(("plugins", "disableCheck", "disableGC")),
    "dummy": {},
    "firewall": dict.fromkeys(("backend", "iptablesAdminChainName", "firewalldZone", "ingressPolicy")),
    "host-device": dict.fromkeys(("device", "hwaddr", "kernelpath", "pciBusID")),
    "ipvlan": dict.fromkeys(("master", "mode", "mtu", "linkInContainer")),
    "loopback": {},
    "macvlan": dict.fromkeys(("master", "mode", "mtu", "mac", "bcqueuelen", "linkInContainer")),
    "portmap": {
        **dict.fromkeys(("snat", "masqAll", "markMasqBit", "externalSetMarkChain", "backend")),
        **dict.fromkeys(("conditionsV4", "conditionsV6", "ports", "userlandProxy", "directAccess", "hostListener")),
        **dict.fromkeys(("randomHostPort", "podHostPorts")),
    },
    "ptp": dict.fromkeys(("ipMasq", "ipMasqBackend", "mtu")),
    "sbr": dict.fromkeys(("table", "gateways", "addSourceHints")),
    "tap": dict.fromkeys(("multiQueue", "mtu", "mac", "owner", "group", "selinuxContext", "bridge")),
    "tuning": dict.fromkeys(("sysctl", "mac", "mtu", "promisc", "allmulti", "txQLen", "dataDir")),
    "vlan": dict.fromkeys(("master", "vlanId", "mtu", "linkInContainer")),
    "vrf": dict.fromkeys(("vrfname", "table")),
}
IPAM: dict[str, Keys] = {  # of the object `ipam`
    "dhcp": {
        **dict.fromkeys(("type", "daemonSocketPath", "priority")),
        "provide": dict.fromkeys(("option", "value", "fromArg")),
        "request": dict.fromkeys(("option", "skipDefault")),
    },
    "host-local": {
        **dict.fromkeys(("type", "name", "dataDir", "resolvConf")),
        **RANGE,  # the oldest form: one range, in ipam itself
        "ranges": RANGE,
        "routes": ROUTE,
    },
    "static": {
        **dict.fromkeys(("type", "name")),
        "addresses": dict.fromkeys(("address", "gateway")),
        "routes": ROUTE,
        "dns": DNS,
    },
}
