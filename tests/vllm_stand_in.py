"""A stand-in for vLLM, with the parts of its interface that are used.

States that lie in pages, a connector that is asked in the scheduler and in the worker, and files with a lock beside.
"""

import fcntl
import importlib
import importlib.machinery
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

BLOCK = 4
"""Tokens of a page."""

LONG = 300
"""Tokens of the longest row up to which the fault "long" does not show."""


@dataclass
class Pending:
    """What the scheduler tells the worker of a request."""

    req_id: str
    filename: str
    token_ids: torch.Tensor
    block_ids: list[int]


class Connector:
    """vLLM's own connector, as far as ours builds on it."""

    def __init__(self, folder):
        self._pending_saves, self._lock_fds, self._req_copy_events = {}, {}, {}
        self._is_tp_rank_zero, self._block_size, self._folder = True, BLOCK, folder
        self._kv_cache = None

    def request_finished(self, request, block_ids):
        path = f"{self._folder}/{request.request_id}.safetensors"
        self._pending_saves[request.request_id] = Pending(
            request.request_id, path, torch.tensor(request.prompt_token_ids), block_ids
        )
        return True, {"hidden_states_path": path}


class Model:
    """vLLM: each request goes through the model of a folder, and its states into a paged cache."""

    made = []
    fault = None

    def __init__(self, **options):
        if Model.fault == "start":
            raise ValueError("Model architectures ['FooForCausalLM'] are not supported for now.")
        Model.made.append(self)
        self.options, self.asked, self.finished, self.begun = options, [], [], set()
        self.layers = options["speculative_config"]["draft_model_config"]["hf_config"][
            "eagle_aux_hidden_state_layer_ids"
        ]
        self.model = transformers.AutoModel.from_pretrained(options["model"], dtype=torch.float32).eval()
        transfer = options["kv_transfer_config"]
        worker = importlib.import_module(transfer.kv_connector_module_path)
        self.connector = getattr(worker, transfer.kv_connector)(
            transfer.kv_connector_extra_config["shared_storage_path"]
        )

    def generate(self, prompts, params, use_tqdm):
        assert not use_tqdm and len(prompts) == len(params)
        for number, (prompt, asked) in enumerate(zip(prompts, params, strict=True)):
            ids = prompt["prompt_token_ids"]
            assert len(ids) < self.options["max_model_len"] and asked.max_tokens == 1
            self.asked.append(ids)
            request = types.SimpleNamespace(
                request_id=f"{len(self.asked)}-{number}",
                prompt_token_ids=ids,
                kv_transfer_params=asked.extra_args["kv_transfer_params"],
            )
            answer = self._through(request)
            self.finished.append(types.SimpleNamespace(prompt_token_ids=ids, kv_transfer_params=answer))
            if Model.fault == "stopped" and number == 2:
                raise KeyboardInterrupt
        outputs, self.finished = self.finished, []  # all that is finished, an earlier call's too
        return outputs

    def _through(self, request):
        states = self.states(request.prompt_token_ids)
        n = len(request.prompt_token_ids)
        blocks = -(-n // BLOCK)
        order = np.random.default_rng(n).permutation(2 * blocks)[:blocks].tolist()  # pages lie anywhere
        cache = torch.full((2 * blocks, len(self.layers), BLOCK, states.shape[-1]), torch.nan)
        for at in range(n):
            cache[order[at // BLOCK], :, at % BLOCK] = states[:, at]
        self.connector._kv_cache = cache
        finished, answer = self.connector.request_finished(request, order)
        pending = self.connector._pending_saves.pop(request.request_id)
        lock = os.open(pending.filename + ".lock", os.O_CREAT | os.O_WRONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)  # which whoever reads the file waits for
        self.connector._lock_fds[request.request_id] = lock
        self.connector._submit_async_write(pending)
        assert finished and self.connector._req_copy_events[request.request_id].query()
        return answer

    def states(self, ids):
        """What goes into block k, or comes out of the last one, for each layer."""
        found = []
        blocks = self.model.layers
        handles = [
            block.register_forward_pre_hook(
                lambda _, args, kwargs: found.append((args[0] if args else kwargs["hidden_states"])[0]),
                with_kwargs=True,
            )
            for block in blocks
        ]
        handles.append(
            blocks[-1].register_forward_hook(
                lambda _, args, out: found.append((out[0] if type(out) is tuple else out)[0])
            )
        )
        with torch.inference_mode():
            self.model(input_ids=torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        shift = 1 if Model.fault == "other numbers" else 0
        picked = torch.stack([found[max(0, layer - shift)] for layer in self.layers])
        if Model.fault == "beginning" and ids[0] in self.begun and len(ids) > 200:
            picked[:, :8] = 1  # states of its cache that are not those of this row
        if Model.fault == "long" and self.options["max_model_len"] > LONG:
            picked = -picked  # as a model that turns positions otherwise if it may get long rows
        self.begun.add(ids[0])
        return picked * torch.nan if Model.fault == "nan" else picked


def load_when_written(path):
    lock = os.open(path + ".lock", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(lock)
    return load_file(path)


def cleanup(path):
    Path(path).unlink()
    Path(path + ".lock").unlink()


def install(monkeypatch):
    """Put it in the place of the package, without a fault and with nothing made yet."""
    extraction = types.SimpleNamespace(
        ExampleHiddenStatesConnector=Connector,
        extract_from_kv_cache=lambda cache, slots, n: cache[slots // BLOCK, :, slots % BLOCK][:n],
        load_hidden_states=load_when_written,
        cleanup_hidden_states=cleanup,
    )
    names = ["vllm", "vllm.config", "vllm.distributed", "vllm.distributed.kv_transfer"]
    names += ["vllm.distributed.kv_transfer.kv_connector", "vllm.distributed.kv_transfer.kv_connector.v1"]
    for name in names:
        module = types.ModuleType(name)
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["vllm"].LLM = Model
    sys.modules["vllm"].SamplingParams = types.SimpleNamespace
    sys.modules["vllm.config"].KVTransferConfig = types.SimpleNamespace
    sys.modules[names[-1]].example_hidden_states_connector = extraction
    monkeypatch.setitem(sys.modules, f"{names[-1]}.example_hidden_states_connector", extraction)
    monkeypatch.delitem(sys.modules, "hf_safefilter.model.vllm_worker", raising=False)
    Model.made, Model.fault = [], None
