"""Published ports: configuration, mappings, claims, elements or rules, and portfwd for what NAT cannot serve.

Where a port conflict is decided: claims.py (containers), host_listeners.py (programs of the host). Imports all packages below:
iptables, nftables, attachment, protocol, kernel.
"""
