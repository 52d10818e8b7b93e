"""Published ports. An ADD of portmap goes down this list; DEL goes up the operations that its record lists.

    config                    the configuration, checked; a row of ports is one entry from here on
    mapping, options          which ports lead where, for each address of the container; what is put together as a range
    random_ports              host ports to be found
    plan                      the operations
    host_listeners            programs of the host that listen on the ports
    publish, by_iptables,     the operations that publish: by nftables, by iptables, through portfwd
      relay
    claims, shares            who holds a port, in nftables' maps; ports that several containers share
    conflicts                 what a holder means to who wants its port: the one place where that is decided
    successors                which attachment takes a port over when its holder is DELeted
    draft                     the elements of one transaction, sent by nftables.elements

Beside it: index, publication, survey and leftovers find and remove what earlier attachments left published; host_clients lets
processes of the host and the container itself reach a published port; flows forgets tracked UDP flows.

Imports all packages below: iptables, nftables, attachment, protocol, kernel.
"""
