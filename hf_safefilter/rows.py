"""`row_id` under the name that published cards print; the code is in `hf_safefilter.data.row_ids`."""

from hf_safefilter.data.row_ids import row_id

__all__ = ["row_id"]
