"""Addresses: the ranges they come from, and the reservations on disk.

Imports attachment, protocol, kernel and what is below.
"""
