"""The daemon's small children: a process with listed descriptors only, and a keeper that starts it again when it dies.

What a child does is in its own package (`runnerd.assets`, `runnerd.egress`); nothing here knows.
"""
