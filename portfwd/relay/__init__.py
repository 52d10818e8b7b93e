"""The relay of one process: mappings, their listeners, TCP connections and UDP flows.

Floor 4 of 6. Imports steering, netns and the modules at the top of portfwd. It knows no service, no disk and no command line.
Where a port conflict is decided: claims.py (mappings), bind.py (bind(2)), holders.py (who has the port).
"""
