"""cni_py: the core that the CNI plugins, the commands and other people's plugins share.

What a call passes through, in order:

    skel       one CNI call: environment and stdin in, result or error object out
    errors     the error object and its codes
    jsontext   JSON as Go reads and writes it
    netconf    typed reading of a network configuration
    addr       IP and MAC addresses as bytes
    version    the versions of the specification
    result     the result of a call, in the form of each version
    call       what a plugin is given: the attachment, its configuration, the two namespaces
    invoke     delegation to another plugin (IPAM)
    engine     applies a plan of operations, records it, undoes it
    ops        operations on links, addresses, routes, sysctls
    nftops     operations on elements of our nftables table
    tuningops  operations of the plugin tuning, shapingops those of bandwidth
    userland   portmap's requests to portfwd; portshares, portclaims, portmappings, portoptions: what portmap publishes
    hostlisteners  programs of the host on a port that is to be published; listenerowners, processes: who they are
    hostclients    127.0.0.0/8, and the guard that keeps it to the host
    ownership  whether a namespace is still the attachment's; garbage: what GC removes; bridgeusers: who is on a bridge
    vlangateway, resolvconf    the bridge plugin's gateway in a VLAN; host-local's DNS settings
    portindex  who publishes ports for an address; portsurvey makes it anew, leftovers takes away what nobody stands behind
    randomports    host ports for hostPort 0; localports: what may be chosen, stickyports: what a name had before
    restore    puts back what somebody took out of nftables
    records    attachment records below /run/cni-py
    locks      flock with a limit
    kernel/    rtnetlink, nf_tables, conntrack, namespaces, sysctl: the only modules that open sockets
    commands/  cni-py and cni-py-exec
    plugins/   the CNI plugins themselves (folder plugins/ of the source tree)
"""

__version__ = "0.1.0"
REFERENCE_VERSION = "1.9.1"  # of the Go plugins, whose configurations and results ours are
