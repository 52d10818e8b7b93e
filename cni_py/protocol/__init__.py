"""The CNI specification: configurations, results and errors in the forms of each version, and JSON as Go reads and writes it.

Pure, but for libcni's cache and configuration files. Imports the modules below it alone: errors, addr, version, files.
"""
