"""Which layers carry safety: LARF's scaling search, and the angular gap and bounds of Safety Layers."""
