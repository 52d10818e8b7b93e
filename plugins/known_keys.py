"""Every key that our plugins know, for notes about misspelt ones. Loaded by commands, never by a plugin's call.

A name maps to the keys of the object, or of the objects in the list (of lists), that stand there; to None where there is
another value, or where keys are free or checked by the plugin itself. A plugin that learns a key gets it here too: a test
compares this table with what the plugins read.
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
    ("portMappings", "ips", "ipRanges", "mac", "bandwidth", "dns", "io.kubernetes.cri.pod-annotations")
)
PLUGINS: dict[str, Keys] = {
    "bandwidth": dict.fromkeys(("ingressRate", "ingressBurst", "egressRate", "egressBurst")),
    "bridge": {
        **dict.fromkeys(("bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "mtu")),
        **dict.fromkeys(("hairpinMode", "promiscMode", "vlan", "preserveDefaultVlan", "macspoofchk", "enabledad")),
        **dict.fromkeys(("disableContainerInterface", "portIsolation")),
        "vlanTrunk": dict.fromkeys(("id", "minID", "maxID")),
    },
    "firewall": dict.fromkeys(("backend", "iptablesAdminChainName", "firewalldZone", "ingressPolicy")),
    "loopback": {},
    "macvlan": dict.fromkeys(("master", "mode", "mtu", "mac", "bcqueuelen", "linkInContainer")),
    "portmap": {
        **dict.fromkeys(("snat", "masqAll", "markMasqBit", "externalSetMarkChain", "backend")),
        **dict.fromkeys(("conditionsV4", "conditionsV6", "ports", "userlandProxy", "directAccess", "hostListener")),
        **dict.fromkeys(("randomHostPort",)),
    },
    "ptp": dict.fromkeys(("ipMasq", "ipMasqBackend", "mtu")),
    "tuning": dict.fromkeys(("sysctl", "mac", "mtu", "promisc", "allmulti", "txQLen", "dataDir")),
}
IPAM: dict[str, Keys] = {  # of the object `ipam`
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
