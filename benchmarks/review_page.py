"""How fast the review page is in a real browser: the time to load many rows, and from a key to the next row.

    python -m benchmarks.review_page [ROWS]

Chromium and the extra `review` must be installed. The rows are those of the toy, read by the toy model.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from datasets import Dataset
from playwright.sync_api import Browser, sync_playwright

from hf_safefilter import EmbedLayers, ReferenceIndex
from hf_safefilter.engine.local import embed_rows, score_rows
from hf_safefilter.review.review import Review
from hf_safefilter.review.server import start
from hf_safefilter.saved.saved_rows import save_rows
from hf_safefilter.scores import make_score
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

LOADS, KEYS = 5, 40


def scored_rows(folder: Path, count: int) -> None:
    """Toy rows with vectors and two scores; the same few thousand texts again and again, each a row of its own."""
    rows = [
        {"prompt": row["prompt"], "response": row["response"], "label": row["label"]}
        for row in mixed_rows(2000, 0.1, 3)
    ]
    embed = EmbedLayers("toy", [5])
    index = ReferenceIndex.build(*reference_rows(60, 3), embed, license="mit", source="toy")
    steps = [embed, make_score("larf", {}, references=index, layer=5), make_score("length", {})]
    ds = embed_rows(Dataset.from_list(rows), embed)
    for step in steps[1:]:
        ds = score_rows(ds, step)
    many = ds.select([place % len(ds) for place in range(count)]).remove_columns("row_id")
    many = many.add_column("row_id", [f"{place:032x}" for place in range(count)])
    save_rows(many, folder, steps, name=f"{count} toy rows", revision="none")


def loads(browser: Browser, address: str) -> list[float]:
    """Seconds until the histogram, the list and a row are there, each in a new context."""
    seconds = []
    for _ in range(LOADS):
        view = browser.new_context(viewport={"width": 1440, "height": 900})
        page = view.new_page()
        began = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("body[data-ready] #standing")
        ready = time.perf_counter() - began
        page.wait_for_selector("body[data-complete]")
        seconds.append(ready)
        print(f"loaded in {ready:.2f} s, map and verdict in {time.perf_counter() - began:.2f} s")
        view.close()
    return seconds


def keys(browser: Browser, address: str) -> list[float]:
    """Milliseconds from a key to the next row on the page, its decision being on the disk, measured in the page."""
    view = browser.new_context(viewport={"width": 1440, "height": 900}, bypass_csp=True)
    page = view.new_page()
    page.goto(address)
    page.wait_for_selector("body[data-complete]")
    page.keyboard.press("t")
    page.wait_for_selector("#row pre")
    waits = []
    for _ in range(KEYS):
        waits.append(
            page.evaluate(
                """() => new Promise((done) => {
                    const heading = document.querySelector("#standing h2").textContent, began = performance.now();
                    const watch = new MutationObserver(() => {
                        const now = document.querySelector("#standing h2")?.textContent;
                        if (now && now !== heading) { watch.disconnect(); done(performance.now() - began); }
                    });
                    watch.observe(document.getElementById("row"), { childList: true, subtree: true });
                    document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "k", bubbles: true }));
                })"""
            )
        )
    view.close()
    return waits


def main() -> None:
    """Print medians and worst cases."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        scored_rows(Path(scratch) / "scored", count)
        began = time.perf_counter()
        review = Review.of(Path(scratch) / "scored", Path(scratch) / "decisions.jsonl", by="larf_score")
        running = start(review, who="benchmark")
        print(f"{count} rows opened in {time.perf_counter() - began:.1f} s")
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        seconds, waits = loads(browser, running.address), keys(browser, running.address)
        browser.close()
        running.close()
    print(f"load: median {median(seconds):.2f} s, slowest {max(seconds):.2f} s")
    print(f"key to next row: median {median(waits):.0f} ms, slowest {max(waits):.0f} ms of {len(waits)}")


if __name__ == "__main__":
    main()
