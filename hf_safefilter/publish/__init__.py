"""From a decision to a published data set with a card from which a stranger can re-run it."""
