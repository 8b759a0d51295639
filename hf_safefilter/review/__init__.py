"""A page in the browser on which people look at scored rows, move the threshold, and decide on single rows."""
