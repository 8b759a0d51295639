"""How fast layers are read: the reference loop of LARF, a plain padded loop, and `EmbedLayers`, on the same rows.

Every variant runs in a process of its own; rounds are interleaved and medians are taken, so that what else the machine
does falls on all of them alike. Times are end to end: rows of text in, vectors of one layer out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLE = """example:
  python -m benchmarks.embed
  python -m benchmarks.embed --rows my_rows.jsonl more_rows.jsonl --limit 96 --rounds 5 --threads 4
"""
VARIANTS = {
    "reference": "LARF's loop: one row, whole model, head",
    "padded": "padded batches of 16, output_hidden_states",
    "ours": "EmbedLayers",
    "bfloat16": "EmbedLayers, bfloat16 (share: of the float32 peak)",
}
TEMPLATE = (  # with the fixed head that most published templates have
    "<|system|>\nYou are a careful assistant who answers in plain words.<|end|>\n"
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPECIAL = ["<pad>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
HEADS_OF_TABLE = ("rows/s", "tokens/s", "ratio", "fastest", "of peak", "distinct", "memory", "difference")
_SLOW = 20  # seconds
BLOCKS, WIDTH, INNER, HEADS = 12, 768, 2048, 12
VOCABULARY = 128256  # of Llama 3, for which LARF was published; only its loop computes the head
_MERGES = 32000  # the tokenizer's own, of which the rows' text fills a part


def main() -> None:
    """Make the model, start the variants, run the rounds, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embed",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", type=Path, metavar="FILE", help="JSON Lines; default: the starter rows")
    parser.add_argument("--limit", type=int, default=64, help="rows used, drawn evenly over the files (64)")
    parser.add_argument("--layer", type=int, default=6, help=f"layer read, of {BLOCKS} (6)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each variant (3)")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help=f"width of the head ({VOCABULARY})")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="CPU threads (half)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--worker", choices=[*VARIANTS, "peak"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = pick_rows(options.rows, options.limit)
        (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        make_model(folder, rows, options.vocabulary)
        figures = measure(options, folder)
    print(table(figures, options))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def pick_rows(files: list[Path] | None, limit: int) -> list[dict[str, Any]]:
    """`limit` rows as chat messages, spread evenly over the files, in their order."""
    from hf_safefilter.data.conversations import as_conversations

    if files:
        sets = [[json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line] for file in files]
    else:
        from hf_safefilter.starter import starter_rows

        sets = [starter_rows("unsafe"), starter_rows("safe")]
    found = [conversation for rows in sets for conversation in as_conversations(rows) if not conversation.reason]
    every = np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int)
    return [{"messages": [said.to_dict() for said in found[at].messages]} for at in every]


def chats(rows: list[dict[str, Any]]) -> list[list[dict[str, str]]]:
    """The messages of each row."""
    return [row["messages"] for row in rows]


def make_model(folder: Path, rows: list[dict[str, Any]], vocabulary: int = VOCABULARY) -> None:
    """A Llama of 85M random weights and its vocabulary's, and a byte-level tokenizer trained on the rows' own text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # pieces seen once would make whole rare words single tokens, which no tokenizer in use does
    trainer = trainers.BpeTrainer(
        vocab_size=_MERGES, min_frequency=4, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((m["content"] for found in chats(rows) for m in found), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|end|>",
        extra_special_tokens=SPECIAL[1:4],
        chat_template=TEMPLATE,
        model_max_length=2048,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = dict(hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=BLOCKS, num_attention_heads=HEADS)
    sizes |= dict(max_position_embeddings=2048, pad_token_id=0, tie_word_embeddings=True)
    config = LlamaConfig(vocab_size=max(vocabulary, len(tokenizer.get_vocab())), **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Interleaved rounds of all variants and of the peak; medians. A padded loop over long rows runs once."""
    command = [sys.executable, "-m", "benchmarks.embed", "--folder", str(folder), "--layer", str(options.layer)]
    command += ["--threads", str(options.threads), "--worker"]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    environment |= {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "true"}
    environment |= {"HF_SAFEFILTER_ROW_CACHE": "off"}  # every round reads
    workers = {
        name: subprocess.Popen(
            [*command, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
            env=environment,
        )
        for name in (*VARIANTS, "peak")
    }
    try:
        rounds: dict[str, list[float]] = {name: [] for name in workers}
        for done in range(options.rounds):
            for name, worker in workers.items():
                if done and name == "padded" and rounds[name][0] > _SLOW:  # one round says enough
                    continue
                print(f"round {done + 1} of {options.rounds}: {name:<10}", end="\r", file=sys.stderr, flush=True)
                rounds[name].append(ask(worker)["value"])
        last = {name: ask(worker, "finish") for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return summary(rounds, last, np.load(folder / "reference.npy"), folder, options.layer)


def ask(worker: subprocess.Popen, word: str = "go") -> dict[str, Any]:
    """One round of a worker."""
    worker.stdin.write(word + "\n")
    worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        raise SystemExit("a worker ended early; its message stands above")
    return json.loads(answer)


def summary(
    rounds: dict[str, list[float]], last: dict[str, Any], exact: np.ndarray, folder: Path, layer: int
) -> dict[str, Any]:
    """Rates, ratios, memory, differences and shares of the peak."""
    lengths = np.array(last["reference"]["lengths"])
    peak = statistics.median(rounds.pop("peak"))
    useful = useful_work(lengths, layer)
    figures: dict[str, Any] = {"rows": len(lengths), "tokens": int(lengths.sum()), "layer": layer}
    figures["head"] = last["reference"]["head"]
    distinct = useful - (len(lengths) - 1) * useful_work(np.array([figures["head"]]), layer, read=False)
    figures |= {"peak_gflops": peak / 1e9, "useful_gflop": useful / 1e9, "distinct_gflop": distinct / 1e9}
    figures["variants"] = {}
    seconds = {name: statistics.median(times) for name, times in rounds.items()}
    for name, spent in seconds.items():
        found = np.load(folder / f"{name}.npy")
        difference = np.abs(found - exact).max(axis=1) / np.abs(exact).max(axis=1)
        figures["variants"][name] = {
            "seconds": spent,
            "rows_per_s": len(lengths) / spent,
            "tokens_per_s": float(lengths.sum() / spent),
            "ratio": statistics.median(a / b for a, b in zip(rounds["reference"], rounds[name], strict=False)),
            "ratio_of_fastest": min(rounds["reference"]) / min(rounds[name]),
            "share_of_peak": useful / spent / peak,
            "distinct_share_of_peak": distinct / spent / peak,
            "memory_mb": last[name]["memory_mb"],
            "largest_relative_difference": float(difference.max()),
        }
    return figures


def useful_work(lengths: np.ndarray, layer: int, read: bool = True) -> float:
    """Floating-point operations that layer `layer` at the last position cannot do without.

    Blocks below the deepest at every token, causal attention; the deepest block's keys and values at every token, and
    the rest of it at one, unless nothing is `read`; no head, no padding.
    """
    linear = 2 * (4 * WIDTH**2 + 3 * WIDTH * INNER)
    below = (layer - 1) * (linear * lengths + 2 * WIDTH * lengths.astype(float) ** 2)
    deepest = 4 * WIDTH**2 * lengths + read * (linear - 4 * WIDTH**2 + 4 * WIDTH * lengths)
    return float((below + deepest).sum())


def table(figures: dict[str, Any], options: argparse.Namespace) -> str:
    """What is printed."""
    lines = [
        f"Llama, {BLOCKS} blocks of {WIDTH}, {options.vocabulary} tokens in its head, random weights; "
        f"layer {figures['layer']}; {figures['rows']} rows, "
        f"{figures['tokens'] / figures['rows']:.0f} tokens on average, {figures['head']} of them the template's head; "
        f"float32; {options.threads} threads; "
        f"medians of {options.rounds} interleaved rounds",
        f"matrix-multiply peak measured in the same rounds: {figures['peak_gflops']:.0f} GFLOP/s; "
        f"useful work: {figures['useful_gflop']:.0f} GFLOP",
        "",
        f"{'':<44}" + "".join(f"{head:>11}" for head in HEADS_OF_TABLE),
    ]
    for name, v in figures["variants"].items():
        cells = [f"{v['rows_per_s']:.1f}", f"{v['tokens_per_s']:.0f}", f"{v['ratio']:.2f}"]
        cells += [f"{v['ratio_of_fastest']:.2f}", f"{v['share_of_peak']:.0%}", f"{v['distinct_share_of_peak']:.0%}"]
        cells += [f"{v['memory_mb']:.0f} MB", f"{v['largest_relative_difference']:.0e}"]
        lines.append(f"{VARIANTS[name]:<44}" + "".join(f"{cell:>11}" for cell in cells))
    lines += [
        "",
        "ratio: to the first line, median over rounds; fastest: the same of the fastest, least disturbed rounds",
        "of peak: useful work as if row by row; distinct: the template's head counted once, not once a row",
        "memory: peak above the loaded model; difference: largest relative one from the first line's vectors",
    ]
    return "\n".join(lines)


# Workers


def work(options: argparse.Namespace) -> None:
    """Answer each line of standard input with one timed round."""
    import torch

    torch.set_num_threads(options.threads)
    if options.worker == "peak":
        rounds(peak_of_matrix_multiply, lambda: {})
        return
    rows = json.loads((options.folder / "rows.json").read_text(encoding="utf-8"))
    variant = VARIANT_OF[options.worker](options.folder, options.layer)
    variant.read(rows[:2])
    before = memory_mb(reset=True)
    found: dict[str, np.ndarray] = {}

    def once() -> float:
        begin = time.perf_counter()
        found["vectors"] = variant.read(rows)
        return time.perf_counter() - begin

    def finish() -> dict[str, Any]:
        used = memory_mb() - before
        np.save(options.folder / f"{options.worker}.npy", variant.exact(rows, found["vectors"]))
        return {"memory_mb": used, **variant.lengths(rows)}

    rounds(once, finish)


def rounds(once: Any, finish: Any) -> None:
    """The protocol: "go" is answered by a figure, "finish" by what was gathered."""
    for line in sys.stdin:
        answer = finish() if line.strip() == "finish" else {"value": once()}
        print(json.dumps(answer), flush=True)


def memory_mb(reset: bool = False) -> float:
    """Peak resident memory of this process, in MB; `reset` starts it anew (Linux) and returns what is used now."""
    if reset and Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) / 1e3 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def peak_of_matrix_multiply() -> float:
    """The fastest float32 product this machine does, over sizes and backends, in operations a second."""
    import torch

    from hf_safefilter.model.linears import PrepackedLinear

    best = 0.0
    with torch.inference_mode():
        for width in (1024, 2048, 4096):
            linear = torch.nn.Linear(width, width, bias=False)
            x = torch.randn(2048, width)
            for product in (linear, PrepackedLinear(linear)):
                product(x)
                for _ in range(3):
                    begin = time.perf_counter()
                    product(x)
                    best = max(best, 2 * 2048 * width**2 / (time.perf_counter() - begin))
    return best


class Reference:
    """The loop of LARF's published code: a row at a time through the whole model with its head, all states kept."""

    def __init__(self, folder: Path, layer: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.layer = layer
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def read(self, rows: list[dict[str, Any]]) -> np.ndarray:
        """Vectors `(n, d)` of the last position."""
        import torch

        vectors = []
        for messages in chats(rows):
            ids = self.tokenizer.apply_chat_template(messages, return_tensors="pt")
            with torch.no_grad():
                output = self.model(**ids, output_hidden_states=True)
            vectors.append(output.hidden_states[self.layer][0, -1].numpy())
        return np.array(vectors)

    def exact(self, rows: list[dict[str, Any]], last: np.ndarray) -> np.ndarray:
        """What the last round read."""
        return last

    def lengths(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Tokens of each row, and of the head they have in common."""
        ids = [self.tokenizer.apply_chat_template(m)["input_ids"] for m in chats(rows)]
        return {"lengths": [len(one) for one in ids], "head": len(os.path.commonprefix(ids))}


class Padded(Reference):
    """What one writes first: batches of 16 in the rows' order, padded, all states kept."""

    def read(self, rows: list[dict[str, Any]]) -> np.ndarray:
        """Vectors `(n, d)` of the last position."""
        import torch

        found, vectors = chats(rows), []
        for at in range(0, len(found), 16):
            ids = self.tokenizer.apply_chat_template(found[at : at + 16], return_tensors="pt", padding=True)
            with torch.no_grad():
                output = self.model(**ids, output_hidden_states=True)
            last = ids["attention_mask"].sum(1) - 1
            vectors.append(output.hidden_states[self.layer][torch.arange(len(last)), last].numpy())
        return np.concatenate(vectors)


class Ours:
    """`EmbedLayers` at the last token, as `Dataset.map(batched=True)` calls it."""

    dtype = "float32"

    def __init__(self, folder: Path, layer: int) -> None:
        from hf_safefilter.embed import EmbedLayers

        self.layer = layer
        self.step = EmbedLayers(str(folder), [layer], position="last", device="cpu", dtype=self.dtype)

    def read(self, rows: list[dict[str, Any]]) -> np.ndarray:
        """The float16 column."""
        return np.concatenate(self.step({"messages": chats(rows)})[f"emb_layer_{self.layer}"])

    def exact(self, rows: list[dict[str, Any]], last: np.ndarray) -> np.ndarray:
        """The vectors before they are rounded to float16."""
        return self.step.vectors(rows)[0].vectors[self.layer]

    def lengths(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Not counted twice."""
        return {}


class OursInBfloat16(Ours):
    """The same in bfloat16: fine for ranking rows, not for equality."""

    dtype = "bfloat16"


VARIANT_OF = {"reference": Reference, "padded": Padded, "ours": Ours, "bfloat16": OursInBfloat16}


if __name__ == "__main__":
    main()
