"""The model that is read: its revision, its tokens, its blocks and the states between them."""
