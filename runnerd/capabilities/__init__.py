"""Host capabilities: what a guest may ask of its host, and the daemon's half of each.

In the order of a call:

    catalog.py, shapes.py    which functions there are, in one table: number, types, capability, who answers
    values.py, arguments.py  arguments from the wire, exactly of those types; their parts
    broker.py, grants.py     may this invocation make this call, and for how long
    handlers.py              what a capability is to the broker: a coroutine function for each of its functions
    <interface>.py           the capability; "config" is in settings.py, what has nothing behind it in unavailable.py
    results.py, answers.py   the answer: a value or a case; and what every function can say: refused, not offered, failed
    denials.py               why it was refused, for the record of the execution

`context` and `logging` need nothing of the daemon's and are answered in the worker (`runnerd/engine/host_functions.py`). What is behind
the others is chosen in `runnerd/capability_assembly.py`.
"""
