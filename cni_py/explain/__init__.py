"""`cni-py explain`: the way of a packet to a published port, hop by hop, computed from the model of a host.

Floor 12 of 13. May import: host, plugins, skel, ownership, ports, iptables, nftables, firewalld, ipam, interface, attachment,
backend, protocol, kernel, base.
"""
