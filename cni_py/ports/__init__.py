"""Published ports, for the plugin portmap. An ADD goes down this list; a DEL undoes the operations of its record.

    config                           the configuration, checked; a row of ports is one entry from here on
    mapping, options                 which host port leads where, for each address of the container
    random_ports                     numbers for hostPort 0
    plan                             which operations
    host_listeners                   a program of the host listens on a port: a conflict is decided here, or
    conflicts                        another container has it: what its holder means to who wants the port
    publish, by_iptables, relay      the operations: by nftables, by iptables, by portfwd
    claims, shares                   who holds a port in the nftables maps; ports of several containers
    successors                       which attachment takes a port over when its holder is DELeted
    draft                            the elements of one transaction, sent by nftables.elements

index, publication, survey and leftovers find and remove ports that earlier attachments left. host_clients lets the host's
programs and the container itself reach a published port; flows forgets tracked UDP flows.

Floor 8 of 13. May import: iptables, nftables, firewalld, ipam, interface, attachment, backend, protocol, kernel, base.
"""
