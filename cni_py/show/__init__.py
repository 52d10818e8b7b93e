"""`cni-py show`: the model of a host as a picture. Each form (text, SVG, DOT, page) is a pure function of the model.

Floor 12 of 13. May import: host, plugins, skel, ownership, ports, iptables, nftables, firewalld, ipam, interface, attachment,
backend, protocol, kernel, base.
"""
