"""The interface file server: its own small process, which holds no key, no database and opens no path.

`supervisor` and `catalogue` are the daemon's half; everything else runs in the child (`python -m runnerd.assets`).
"""
