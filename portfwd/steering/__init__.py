"""Many ports with one socket: the BPF program (sk_lookup), and the sysctl that keeps the ports from the kernel's own choice.

The relay uses it where the kernel permits it; `portfwd run` does not use it.

Floor 3 of 6. May import: netns, base.
"""
