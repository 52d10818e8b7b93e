"""One attachment from plan to undo: the call, the operations, their record on disk, locks, garbage collection.

Knows no operation by name but those that a record lists, and no plugin. Imports protocol, kernel and what is below.
"""
