"""The warm service, `cni-py serve`: a process that has loaded every plugin and forks a child for each call.

cni_py/warm.py is the launcher's side, and has the protocol.
"""
