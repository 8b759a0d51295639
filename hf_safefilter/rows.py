"""`row_id` under the name that published cards print; the code is in `hf_safefilter.data.conversations`."""

from hf_safefilter.data.conversations import row_id

__all__ = ["row_id"]
