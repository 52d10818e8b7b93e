"""What is asked of the kernel: rtnetlink, nf_tables, tc, conntrack, sock_diag, namespaces, sysctl, /proc.

The only modules that open netlink sockets. Imports errors, addr, version and files alone.
"""
