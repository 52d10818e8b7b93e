"""The CNI specification: configurations, results in the form of each version, JSON as Go has it, and libcni's cache.

Nothing here changes the network. Only `conflist` and `cache` use files.

Floor 3 of 13. May import: kernel, base.
"""
