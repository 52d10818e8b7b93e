"""`cni-py doctor`: what is wrong with a host, or will be, with the reason and the remedy.

Floor 12 of 13. May import: host, plugins, skel, ownership, ports, iptables, nftables, firewalld, ipam, interface, attachment,
backend, protocol, kernel, base.
"""
