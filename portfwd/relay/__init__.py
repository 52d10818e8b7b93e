"""The relay of one process: mappings (`publish`), their listeners, TCP connections (`tcp`) and UDP flows (`udp`).

Knows no service, no files and no command line. A port conflict is decided in `claims` (another mapping) and `bind` (bind(2));
`holders` finds out who has the port.

Floor 4 of 6. May import: steering, netns, base.
"""
