"""firewalld, the host's firewall where it runs: containers' addresses in its zones, asked for over D-Bus.

Which zone, and what firewalld may answer: `zones`. The messages: `bus`. What the plugin does: `sources`.

Floor 6 of 13. May import: attachment, backend, protocol, kernel, base.
"""
