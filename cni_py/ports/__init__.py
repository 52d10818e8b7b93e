"""Published ports, for the plugin portmap. A reader goes down: `config`, `mapping`, `plan`, `publish`, `claims`, `draft`.

`plan` turns a configuration into operations: by nftables (`publish`), by iptables (`by_iptables`), by portfwd (`relay`).
A port conflict is decided in `conflicts` (another container) and in `host_listeners` (a program of the host).

Floor 8 of 11. May import: iptables, nftables, ipam, interface, attachment, backend, protocol, kernel, base.
"""
