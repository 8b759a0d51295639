"""Rows as users have them, and as steps see them: loading, conversations, batches, vectors, splits."""
