"""Putting back what attachments lost: `cni-py restore`, and `--watch`, which does it when the kernel says that something went.

Floor 12 of 13. May import: host, plugins, skel, ownership, ports, iptables, nftables, firewalld, ipam, interface, attachment,
backend, protocol, kernel, base.
"""
