"""From a decision to a published data set, with a card from which anybody can repeat it."""
