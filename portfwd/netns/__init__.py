"""Sockets in other network namespaces, and which of them lead back here.

Floor 2 of 6. Imports the modules at the top of portfwd alone.
"""
