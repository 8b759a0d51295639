"""What runs inside vLLM's workers: of the states that it has extracted, only the means that were asked for leave it.

vLLM imports this module by its name. Its own connector for hidden states writes all states of all tokens to files.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from safetensors.torch import save_file
from vllm.distributed.kv_transfer.kv_connector.v1 import example_hidden_states_connector as extraction

from hf_safefilter.model.vllm_engine import STATES


class _Copied:
    """Stands for the event of a copy to this machine's memory that has ended."""

    def query(self) -> bool:
        return True


class MeanStates(extraction.ExampleHiddenStatesConnector):  # type: ignore[misc]  # vLLM is seldom installed
    """Writes one mean a read of a request, for each layer; reads come with the request."""

    def request_finished(self, request: Any, block_ids: list[int]) -> Any:
        """In the scheduler: what is to be written of a request goes with it to the worker."""
        answer = super().request_finished(request, block_ids)
        pending = self._pending_saves.get(request.request_id)
        if pending is not None:
            pending.reads = request.kv_transfer_params["reads"]
        return answer

    def _submit_async_write(self, pending: Any) -> None:
        """In the worker, when all tokens of a request have gone through the model."""
        if not self._is_tp_rank_zero:
            return
        try:
            device = self._kv_cache.device
            blocks = torch.tensor(pending.block_ids, device=device)
            slots = blocks[:, None] * self._block_size + torch.arange(self._block_size, device=device)
            states = extraction.extract_from_kv_cache(self._kv_cache, slots.flatten(), len(pending.token_ids))
            means = torch.stack([states[start:stop].float().mean(dim=0) for start, stop in pending.reads])
            save_file({STATES: means.cpu().contiguous()}, pending.filename)
        finally:
            lock = self._lock_fds.pop(pending.req_id, None)
            if lock is not None:
                os.close(lock)  # whoever waits for the file may read it
            self._req_copy_events[pending.req_id] = _Copied()
