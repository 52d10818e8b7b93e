"""The DHCP daemon, `dhcp daemon`: acquires leases inside containers, renews and releases them.

    daemon     the process: its arguments, socket and signals
    rpc        calls of the plugin, ours or the Go plugins'
    leases     all leases, and which of them still serve somebody
    holder     one lease: its machine, its socket, its timer
    machine    the client's states (RFC 2131): what to send, and when. Pure
    message    DHCP messages. Pure
    frame      the headers of IP and UDP around them. Pure
    wire       the socket in a container's namespace
    answer     what the plugin is told of a lease. Pure
    store      leases on disk

One thread, in which asyncio waits: setns(2) moves the thread, and nothing else runs meanwhile.

Floor 13 of 13. May import: show, explain, doctor, restore, host, plugins, skel, ownership, ports, iptables, nftables,
firewalld, ipam, interface, attachment, backend, protocol, kernel, base.
"""
