"""`portfwd serve`: the process around the relay: control socket, mappings on disk, owners, its successor, systemd.

Floor 5 of 6. Imports relay, steering, netns and the modules at the top of portfwd. client.py is the commands' side of the socket.
"""
