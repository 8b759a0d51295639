"""Small scored rows for the review page: two splits, kinds, copies, an unreadable and a hostile row."""

from datasets import Dataset, DatasetDict

from hf_safefilter import EmbedLayers, ReferenceIndex
from hf_safefilter.engine.local import add_ranks, embed_rows, score_rows
from hf_safefilter.saved.saved_rows import save_rows
from hf_safefilter.scores import make_score
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

HOSTILE, UNREAD, COPY, ORIGINAL = 7, 8, 9, 10
"""Places of some rows."""

MARKUP = (
    "<script>document.title='hacked'</script><img src=http://example.com/x.png onerror=\"document.title='hacked'\">"
    " \u202egnp.exe\u202c \x1b[31mred\x07 **bold** [a](http://example.com)"
)
PLAIN = (
    "<script>document.title='hacked'</script><img src=http://example.com/x.png onerror=\"document.title='hacked'\">"
    " gnp.exe red **bold** [a](http://example.com)"
)
"""The same as it may be shown."""


def scored_folder(folder, count=60):
    """Write `count` rows, scored by the probe and the shift and decided by the larger rank; gives rows and steps."""
    rows = [
        {
            "messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}],
            "category": ["cooking", "travel"][place % 2],
        }
        for place, row in enumerate(mixed_rows(count, 0.25, 3))
    ]
    rows[0]["messages"] = rows[0]["messages"] + rows[1]["messages"]
    rows[HOSTILE]["messages"][1]["content"] = MARKUP
    rows[UNREAD]["messages"][1]["content"] = ""
    rows[COPY] = dict(rows[ORIGINAL])
    layers = (3, 5)
    embed = EmbedLayers("toy", layers, position="mean,last_prompt")
    index = ReferenceIndex.build(*reference_rows(20, 3), embed, license="mit", source="a test")
    steps = [embed, *(make_score(name, {}, references=index, layer=5, layers=layers) for name in ("probe", "shift"))]
    half = count // 2
    ds = DatasetDict(train=Dataset.from_list(rows[:half]), test=Dataset.from_list(rows[half:]))
    ds = embed_rows(ds, embed)
    for step in steps[1:]:
        ds = score_rows(ds, step)
    ds, rank = add_ranks(ds, ["probe_score", "shift_score"], "largest_rank")
    save_rows(ds, folder, [*steps, rank], name="<b>rows</b>", revision="none")
    return ds, [*steps, rank]
