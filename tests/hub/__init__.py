"""A Hub on the loopback interface: real HTTP, in memory, with faults on demand. `early.py` says how tests use it."""
