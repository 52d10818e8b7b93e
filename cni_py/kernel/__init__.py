"""What cni-py asks of the kernel: netlink (links, addresses, nf_tables, tc, conntrack, sockets), namespaces, sysctls, /proc.

Each module has the messages of one subsystem, named as in the kernel's headers. Only these modules open netlink sockets; none
of them knows what a container or a CNI configuration is.

Floor 2 of 13. May import: base.
"""
