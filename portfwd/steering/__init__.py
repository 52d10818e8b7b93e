"""Many ports, one socket: the BPF program (sk_lookup), and the ports that the kernel shall choose for nobody.

Floor 3 of 6. Imports the modules at the top of portfwd alone. The relay uses it where the kernel lets it; `portfwd run` does not.
"""
