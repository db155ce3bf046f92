"""Guests' HTTP: its own small process, which holds no key, no database and opens no path.

`client` is the daemon's half; everything else runs in the child (`python -m runnerd.egress`). What may be asked for is decided before it
comes here, by name (`runnerd.capabilities.egress_policy`); which addresses are connected to is decided here.
"""
