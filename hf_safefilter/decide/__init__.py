"""From scores to a decision: thresholds, the predicate and the split, evaluation on labels."""
