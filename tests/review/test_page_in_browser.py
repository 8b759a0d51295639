"""The page in a real browser: what is seen, what a key does, what is asked of whom, and what a kill leaves."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import pytest
from datasets import Dataset

from hf_safefilter.engine.local import score_rows
from hf_safefilter.review import server
from hf_safefilter.review.review import Review
from hf_safefilter.saved.saved_rows import save_rows
from hf_safefilter.scores import make_score
from review.scored_folder import HOSTILE, MARKUP, PLAIN

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'hf_safefilter[review]'")
playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")

PRESS = "const press = (key) => document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: make browser installs it")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def shown(browser):
    """Open the page of a review; gives it when all is drawn. Every request must go to this machine."""
    closing, asked = [], []

    def show(review, **context):
        running = server.start(review, who="ada")
        view = browser.new_context(viewport={"width": 1280, "height": 800}, **context)
        closing.extend([view.close, running.close])
        page = view.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: pytest.fail(f"the script failed: {error}"))
        return opened(page, running.address)

    yield show
    for close in closing:
        close()
    assert asked and {urlsplit(address).hostname for address in asked} == {"127.0.0.1"}


def opened(page, address):
    page.goto(address)
    page.wait_for_selector("body[data-complete]")
    page.wait_for_selector("#row[aria-busy=false]")
    return page


def open_by_search(page, review, place):
    page.fill("#search", review.rows.ids[place])
    page.wait_for_selector(f"#standing h2:text-is('Row {place}')")
    page.locator("#search").blur()


@contextmanager
def saved_after(page):
    with page.expect_response(lambda answer: "/decision" in answer.url) as answer:
        yield
    assert answer.value.status == 200


def press_and_go_on(page, key):
    """Press a key that decides, and wait until the next row is seen."""
    page.wait_for_selector("#row[aria-busy=false]")
    shown = page.inner_text("#standing h2")
    with saved_after(page):
        page.keyboard.press(key)
    page.wait_for_selector(f"#standing h2:not(:text-is('{shown}'))")


def lines(review):
    path = review.log.path
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_text_is_hidden_until_a_key_and_a_hostile_row_stays_text(review, shown):
    page = shown(review)
    open_by_search(page, review, HOSTILE)
    assert "gnp.exe" not in page.content() and "**bold**" not in page.content()
    page.keyboard.press("t")
    page.wait_for_selector("#row pre >> nth=1")
    assert page.locator("#row pre").nth(1).text_content() == PLAIN != MARKUP
    assert page.title() == "Review: <b>rows</b>" and not page.locator("#row script, #row img, #row a, #what b").count()
    page.keyboard.press("t")
    page.wait_for_selector("#row .hidden-text")
    assert "gnp.exe" not in page.content()


def test_a_key_decides_and_opens_the_next_row(review, shown):
    page = shown(review)
    first = page.locator(".line[aria-current]").inner_text()
    press_and_go_on(page, "d")
    page.wait_for_selector("#progress-text:has-text('1 of 60 decided, 1 by you')")
    assert page.locator(".line[aria-current]").inner_text() != first
    (line,) = lines(review)
    assert (line["decision"], line["who"], line["threshold"]) == ("drop", "ada", review.is_safe.threshold)
    with saved_after(page):
        page.keyboard.press("z")
    page.wait_for_selector("#progress-text:has-text('0 of 60 decided')")
    assert [line["decision"] for line in lines(review)] == ["drop", "withdrawn"]
    page.wait_for_selector(f"#standing h2:text-is('Row {first.split()[0]}')")
    assert page.locator(".line[aria-current]").inner_text() == first


def test_a_key_that_is_pressed_ahead_decides_no_row_that_was_not_seen(review, shown):
    page = shown(review)
    with saved_after(page):
        page.evaluate(PRESS + "for (const key of 'kkdd') press(key)")
    page.wait_for_selector("#progress-text:has-text('1 of 60 decided')")
    press_and_go_on(page, "u")  # what was sent before is written before
    assert [line["decision"] for line in lines(review)] == ["keep", "unsure"]


def test_keys_for_keep_unsure_mask_and_note(review, shown):
    page = shown(review)
    for key in "kum":
        press_and_go_on(page, key)
    page.keyboard.press("n")
    page.fill("#note", "<i>look</i> again")
    with saved_after(page):
        page.keyboard.press("Enter")
    assert [line["decision"] for line in lines(review)] == ["keep", "unsure", "mask", "unsure"]
    assert lines(review)[2]["turns"] and lines(review)[3]["note"] == "<i>look</i> again"
    page.wait_for_selector("#facts .said:has-text('<i>look</i> again')")


def test_a_note_that_is_begun_before_the_decision_is_saved_loses_no_letter_and_decides_no_row(review, shown):
    page = shown(review)
    first = page.inner_text("#standing h2")
    page.evaluate(PRESS + "for (const key of 'dn') press(key)")
    page.keyboard.type("drunk words, z")  # of which each letter is a key of the page
    page.keyboard.press("Enter")
    page.wait_for_selector("#facts .said:has-text('drunk words, z')")
    assert [(line["decision"], line["note"]) for line in lines(review)] == [("drop", ""), ("drop", "drunk words, z")]
    assert page.inner_text("#standing h2") == first


def test_a_note_on_a_row_that_is_still_fetched_stays_when_the_row_is_there(review, shown):
    page = shown(review)
    page.select_option("#sort", "low")
    page.wait_for_selector("#row[aria-busy=false]")
    held, released = [], []

    def hold(route):
        route.continue_() if released else held.append(route)

    page.route("**/review/row/*", hold)
    page.keyboard.press("End")
    page.keyboard.press("n")
    page.keyboard.type("mud")
    page.wait_for_selector("#row[aria-busy=true]")
    released.append(True)
    for route in held:
        route.continue_()
    page.wait_for_selector("#row[aria-busy=false]")
    page.keyboard.type("dy")
    assert page.input_value("#note") == "muddy" and not lines(review)


def test_keys_go_far_in_a_long_list(review, shown):
    page = shown(review)
    page.select_option("#sort", "order")
    for key, row in [("PageDown", 10), ("End", 59), ("PageUp", 49), ("Home", 0), ("PageUp", 0)]:
        page.keyboard.press(key)
        page.wait_for_selector(f"#standing h2:text-is('Row {row}')")


def test_a_threshold_that_is_no_number_is_refused_in_words(review, shown):
    page = shown(review)
    before = page.input_value("#threshold")
    for typed in ("high", ""):
        page.fill("#threshold", typed)
        page.keyboard.press("Enter")
        page.wait_for_selector("#alert:has-text('is no threshold')")
        assert page.input_value("#threshold") == before
    page.fill("#threshold", "0,5")
    page.keyboard.press("Enter")
    page.wait_for_selector("#alert", state="hidden")
    assert float(page.locator("#histogram").get_attribute("aria-valuenow")) == 0.5


def test_the_command_at_the_end_is_in_sight_whatever_else_is_said(review, shown):
    page = shown(review)
    page.evaluate("document.querySelector('#verdict').textContent = 'many words '.repeat(80)")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.parentElement.id") == "then":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#command", state="visible")
    box = page.locator("#command").bounding_box()
    inside = "([x, y]) => document.elementFromPoint(x, y).id"
    assert page.evaluate(inside, [box["x"] + 5, box["y"] + 5]) == "command"
    first, second = page.inner_text("#command").splitlines()
    assert (
        first.startswith("hf-safefilter card ") and "--decisions" not in first and second.endswith("push out me/my-set")
    )
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    press_and_go_on(page, "d")
    assert f"--decisions {review.log.path}" in page.inner_text("#command")


def test_the_threshold_is_dragged_and_the_counts_follow(review, shown):
    page = shown(review)
    box = page.locator("#histogram").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 320, box["y"] + 60)
    page.mouse.up()
    threshold = float(page.locator("#histogram").get_attribute("aria-valuenow"))
    scores = review.rows.scores[np.isfinite(review.rows.scores)]
    counts = [int(text) for text in page.locator("#counts dd:not(.share)").all_inner_texts()]
    assert 0.1 < threshold < 0.9
    assert counts == [(scores < threshold).sum(), (scores >= threshold).sum(), 1]
    page.click("#reset")
    assert float(page.locator("#histogram").get_attribute("aria-valuenow")) == review.is_safe.threshold


def test_the_parts_of_a_bar_are_in_proportion_and_named(review, shown):
    page = shown(review)
    page.select_option("#histogram-by", "category")
    assert page.locator("#histogram-legend > span").evaluate_all("all => all.map((one) => one.title)") == [
        "cooking", "travel"
    ]  # fmt: skip
    drawn = page.evaluate(
        """() => {
          const seen = [], bar = histogram.bar;
          histogram.bar = (draw, left, wide, top, tall) => seen.push([left, tall]);
          histogram.draw();
          histogram.bar = bar;
          return [seen, histogram.layers.map((layer) => [...layer.bins])];
        }"""
    )
    heights = {}
    for left, tall in drawn[0]:
        heights.setdefault(left, []).append(tall)
    mixed = [counts for counts in zip(*drawn[1], strict=True) if all(counts)]
    parts = [tall for tall in heights.values() if len(tall) > 1]
    assert mixed and len(parts) == len(mixed)
    for counts, tall in zip(mixed, parts, strict=True):
        assert np.array(tall) / sum(tall) == pytest.approx(np.array(counts) / sum(counts))


def test_ticks_of_scores_that_hardly_differ_come_to_an_end_and_differ(review, shown):
    page = shown(review)
    texts = page.evaluate("[tickTexts(ticks(1000, 1000 + 6e-8, 6)), tickTexts(ticks(1 - 1.2e-16, 1, 6))]")
    assert len(set(texts[0])) == len(texts[0]) > 3 and len(texts[1]) < 30


def test_rows_are_drawn_over_the_references_and_dropped_ones_larger(review, shown):
    page = shown(review)
    page.wait_for_function("state.points !== null && scatter.cached")
    colours = page.evaluate(
        """() => {
          state.open = -1;
          scatter.draw();
          const canvas = byId("map"), scale = window.devicePixelRatio || 1;
          const places = scatter.places(canvas.clientWidth, canvas.clientHeight), row = state.ascending.at(-1);
          const [x, y] = [places[2 * row], places[2 * row + 1]].map((place) => Math.round(place * scale));
          const at = (shift) => [...canvas.getContext("2d").getImageData(x + shift, y, 1, 1).data].slice(0, 3);
          return [at(0), at(-3), rgb(style("--dropped"))];
        }"""
    )
    assert colours[0] == colours[1] == colours[2]  # of the most dangerous row, which is drawn last


def test_filters_and_orders(review, shown):
    page = shown(review)
    page.select_option("#group", label="category: cooking (31)")
    assert page.inner_text("#list-count") == "31 of 60 rows"
    page.select_option("#state", "dropped")
    page.select_option("#sort", "high")
    numbers = [int(text) for text in page.locator(".line .number").all_inner_texts()]
    scores = review.rows.scores
    cooking = review.rows.groups["category"].codes == review.rows.groups["category"].names.index("cooking")
    wanted = np.flatnonzero(cooking & (scores >= review.is_safe.threshold)).tolist()
    assert sorted(numbers) == wanted and scores[numbers].tolist() == sorted(scores[wanted], reverse=True)


def test_another_reviewer_by_name_and_nobody_without_one(review, shown):
    page = shown(review)
    page.fill("#who", "")
    page.locator("#who").blur()
    page.keyboard.press("k")
    page.wait_for_selector("#alert:has-text('Write your name')")
    page.fill("#who", "bob")
    page.keyboard.press("Enter")
    page.locator("#who").blur()
    with saved_after(page):
        page.keyboard.press("k")
    assert [line["who"] for line in lines(review)] == ["bob"]


def test_without_the_token_there_is_no_page(review, shown):
    page = shown(review)
    answer = page.goto(page.url.partition("?")[0] + "?review=wrong")
    assert answer.status == 401 and "lacks the token" in page.content()


def test_a_killed_server_has_lost_nothing(scored, browser, tmp_path):
    log = tmp_path / "decisions.jsonl"
    words = f"--format quiet review {scored[0]} --by probe_score --no-browser --decisions {log} --who ada"
    command = [sys.executable, "-c", "from hf_safefilter.cli import main; main()", *words.split()]
    view = browser.new_context()
    page = view.new_page()
    for round in (1, 2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        try:
            opened(page, process.stdout.readline().strip())
            assert page.inner_text("#progress-text").startswith(f"{5 * (round - 1)} of 60 decided")
            page.select_option("#state", "open")
            for _ in range(5):
                press_and_go_on(page, "k")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        assert len(log.read_text().splitlines()) == 5 * round
        page.keyboard.press("k")
        page.wait_for_selector("#alert:has-text('Not saved')")
    view.close()


def test_fifty_thousand_rows_are_few_requests_few_bytes_and_few_elements(browser, tmp_path):
    count = 50_000
    rows = Dataset.from_dict({
        "prompt": [f"question {number}" for number in range(count)],
        "response": ["a" * (number * 7919 % 997 + 1) for number in range(count)],
        "category": ["cooking" if number % 3 else "travel" for number in range(count)],
    })  # fmt: skip
    step = make_score("length", {})
    save_rows(score_rows(rows, step), tmp_path / "scored", [step], name="many", revision="none")
    running = server.start(Review.of(tmp_path / "scored", tmp_path / "decisions.jsonl", by="length_score"), who="ada")
    view = browser.new_context()
    page = view.new_page()
    answers = []
    page.on("response", lambda answer: answers.append(answer))
    opened(page, running.address)
    page.wait_for_load_state("networkidle")
    assert len(answers) <= 8  # page, numbers, map, verdict, the open row and its neighbours
    assert sum(len(answer.body()) for answer in answers) < 1_500_000
    assert page.locator("#rows-inner > *").count() < 60
    answers.clear()
    with saved_after(page):
        page.keyboard.press("d")
    page.wait_for_load_state("networkidle")
    assert len(answers) <= 3 and sum(len(answer.body()) for answer in answers) < 10_000
    view.close()
    running.close()


def test_ten_rows_are_asked_for_and_all_are_scored_again_in_place(review, shown):
    page = shown(review)
    page.keyboard.press("s")
    page.wait_for_selector("#alert:has-text('not of both kinds')")
    page.keyboard.press("l")
    page.wait_for_selector("#taught:has-text('10 rows are listed')")
    asked = sorted(map(int, page.locator(".line .number").all_inner_texts()))
    assert asked == sorted(review.next_rows()["rows"]) and page.inner_text("#list-count") == "10 of 60 rows"
    for number in range(4):
        press_and_go_on(page, "kd"[number % 2])
    with saved_after(page):
        page.keyboard.press("d")
    page.keyboard.press("ArrowUp")
    before, group = review.rows.scores.copy(), page.inner_text("#counts dd.dropped")
    page.keyboard.press("s")
    page.keyboard.press("k")
    page.wait_for_selector("#alert:has-text('being scored again')")
    page.wait_for_selector("#taught:has-text('Scored again')")
    page.wait_for_selector("#alert", state="hidden")
    assert (before != review.rows.scores).sum() > 30
    lines_seen = page.locator(".line").all_inner_texts()
    shown_scores = {int(line.split()[0]): float(line.split()[1]) for line in lines_seen if "none" not in line}
    assert all(score == pytest.approx(review.rows.scores[row], rel=1e-3) for row, score in shown_scores.items())
    again = np.sort(review.rows.scores[np.isfinite(review.rows.scores)])
    as_many = (again >= again[-int(group)]).sum()  # ranks may tie
    assert page.inner_text("#list-count") == "60 of 60 rows" and page.inner_text("#counts dd.dropped") == str(as_many)
    assert "labelled/scored" in page.inner_text("#taught") and "labelled/scored" in page.text_content("#command")
    page.wait_for_selector("#progress-text:has-text('5 of 60 decided')")
    assert len(lines(review)) == 5


def test_a_decided_row_is_marked_as_a_reference_and_undone(review, shown):
    page = shown(review)
    page.keyboard.press("r")
    page.wait_for_selector("#alert:has-text('Keep or drop this row first')")
    press_and_go_on(page, "d")
    page.keyboard.press("ArrowUp")
    page.wait_for_selector("#standing .decision.drop")
    with saved_after(page):
        page.keyboard.press("r")
    page.wait_for_selector("#standing .decision:has-text('reference')")
    with saved_after(page):
        page.keyboard.press("z")
    page.wait_for_selector("#standing .decision.drop:not(:has-text('reference'))")
    assert [line["reference"] for line in lines(review)] == [False, True, False]


def test_words_are_coloured_in_text_that_is_shown_and_stay_text(review, shown):
    page = shown(review)
    page.keyboard.press("w")
    page.wait_for_selector("#alert:has-text('Show the text first')")
    open_by_search(page, review, HOSTILE)
    page.keyboard.press("t")
    page.keyboard.press("w")
    page.wait_for_selector("#row pre mark")
    said = page.locator("#row .turn[data-turn='1'] pre").text_content()
    assert said.startswith(PLAIN) and not page.locator("#row script, #row img, #row a").count()
    assert page.title() == "Review: <b>rows</b>"
    page.keyboard.press("w")
    page.wait_for_selector("#row pre:not(:has(mark)) >> nth=1")
