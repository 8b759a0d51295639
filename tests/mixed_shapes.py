"""Rows of several shapes for one file: dialogues of two answers, and prompts with a response, in turn."""

from hf_safefilter.toy.corpus import mixed_rows


def mixed_shapes(n: int, unsafe_share: float = 0.1, seed: int = 0) -> list[dict]:
    """`n` rows; of a dialogue, `unsafe_turn` is the index of its unsafe answer among the messages, -1 without one."""
    pairs = mixed_rows(2 * n, unsafe_share, seed)
    return [_pair(first) if at % 2 else _dialogue(first, second)
            for at, (first, second) in enumerate(zip(pairs[::2], pairs[1::2], strict=True))]  # fmt: skip


def _pair(row: dict) -> dict:
    return {name: row[name] for name in ("prompt", "response", "label")}


def _dialogue(first: dict, second: dict) -> dict:
    names = {"user": "prompt", "assistant": "response"}
    messages = [{"role": role, "content": row[name]} for row in (first, second) for role, name in names.items()]
    unsafe = [turn for turn, row in ((1, first), (3, second)) if row["label"] == "unsafe"]
    return {"messages": messages, "label": "unsafe" if unsafe else "safe", "unsafe_turn": max(unsafe, default=-1)}
