"""Every test runs against a Hub of its own on the loopback interface; nothing reaches further."""

from hub import early

early.start()
pytest_plugins = ["hub.fixtures"]
