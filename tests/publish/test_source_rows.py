"""Before anything is published, rows drawn at random are scored again, and all kept rows are held to the source."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from hf_safefilter.decide.select import IsSafe, split
from hf_safefilter.errors import PublishError
from hf_safefilter.publish import rescoring
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.publish.gather import gather
from hf_safefilter.publish.source_rows import require_source_rows

FACTS = {"license": "mit", "source": "a barn"}
WITHOUT = ["random_score", "length_score"]


def with_cell(rows: Dataset, column: str, index: int, value) -> Dataset:
    cells = rows[column][:]
    cells[index] = value
    return rows.remove_columns(column).add_column(
        column, pa.array(cells, rows.features.arrow_schema.field(column).type)
    )


@pytest.mark.parametrize(
    "attack",
    [
        lambda kept, dropped: with_cell(kept, "response", 17, "poison"),
        lambda kept, dropped: with_cell(kept, "likes", 49, [7]),
        lambda kept, dropped: kept.select([1, 0, *range(2, len(kept))]),
        lambda kept, dropped: kept.select(range(len(kept) - 1)),
        lambda kept, dropped: Dataset.from_list([*kept.to_list(), dropped[0]], features=kept.features),
        lambda kept, dropped: Dataset.from_list([dropped[0], *kept.to_list()[1:]], features=kept.features),
    ],
    ids=["text", "another column", "order", "one less", "one more", "one exchanged"],
)
def test_kept_rows_that_are_not_those_of_the_source_are_not_written(tmp_path, scored, is_safe, steps, attack):
    parts = split(scored, is_safe)
    record = gather(scored, is_safe, steps=steps, **FACTS)
    with pytest.raises(PublishError, match="not those of the source"):
        write_folder(tmp_path / "out", scored, is_safe, record, kept=attack(parts.kept, parts.dropped))
    assert not (tmp_path / "out").exists()
    write_folder(tmp_path / "out", scored, is_safe, record, kept=parts.kept)


def test_splits_files_nan_and_changed_rows_are_compared(tmp_path, scored, is_safe, steps):
    odd = scored.add_column("odd", np.array([np.nan if number % 3 else number for number in range(60)], np.float32))
    splits = DatasetDict(train=odd.select(range(0, 60, 2)), test=odd.select(range(1, 60, 2)))
    write_folder(tmp_path / "out", splits, is_safe, gather(splits, is_safe, steps=steps, **FACTS))
    kept = split(odd, is_safe).kept.remove_columns(WITHOUT)
    files = [tmp_path / f"{number}.parquet" for number in range(3)]
    for number, file in enumerate(files):
        kept.shard(3, number, contiguous=True).to_parquet(str(file))
    require_source_rows(files, odd, is_safe, WITHOUT)
    with pytest.raises(PublishError):
        require_source_rows([files[0], files[2], files[1]], odd, is_safe, WITHOUT)
    pq.write_table(pq.read_table(files[2]).slice(1), files[2])
    with pytest.raises(PublishError):
        require_source_rows(files, odd, is_safe, WITHOUT)


def test_switched_pairs_are_held_to_what_the_decision_makes_of_them(tmp_path):
    pairs = Dataset.from_list(
        [{"prompt": f"{n}?", "chosen": f"c{n}", "rejected": f"r{n}", "x_score": n} for n in range(9)]
    )
    switch = IsSafe("x_score", 5.0, action="switch")
    kept = split(pairs, switch).kept.remove_columns("x_score")
    assert kept["chosen"][:] == [f"c{n}" if n < 5 else f"r{n}" for n in range(9)]
    kept.to_parquet(str(tmp_path / "kept.parquet"))
    require_source_rows([tmp_path / "kept.parquet"], pairs, switch, ["x_score"])
    pairs.remove_columns("x_score").to_parquet(str(tmp_path / "kept.parquet"))
    with pytest.raises(PublishError):
        require_source_rows([tmp_path / "kept.parquet"], pairs, switch, ["x_score"])


def test_the_rows_that_are_scored_again_cannot_be_known_beforehand(scored):
    drawn = [tuple(rescoring.random_samples(scored, 8)[0][1]) for _ in range(20)]
    assert len(set(drawn)) > 15 and all(len(set(rows)) == 8 for rows in drawn)
    assert len({row for rows in drawn for row in rows}) > 30


def test_no_place_is_safe_for_a_false_score(scored, is_safe, steps):
    """Half of the rows have false scores, but none of those that lie evenly over all."""
    even = set(np.linspace(0, 59, 8).round().astype(int).tolist())
    false = [value + 50.0 * (row % 2 and row not in even) for row, value in enumerate(scored["length_score"])]
    attacked = scored.remove_columns("length_score").add_column("length_score", np.array(false, np.float32))
    with pytest.raises(PublishError, match="do not give the scores"):
        gather(attacked, is_safe, steps=steps, check_rows=40, **FACTS)


def test_ids_that_are_not_those_of_the_rows_are_refused():
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.scores.controls import LengthScore

    steps = [EmbedLayers("toy", [1]), LengthScore()]
    rows = Dataset.from_list([{"prompt": f"{n}?", "response": "a" * n} for n in range(1, 9)])
    for step in steps:
        rows = rows.map(step, batched=True)
    decision = IsSafe("length_score", 6.0)
    gather(rows, decision, steps=steps, **FACTS)
    with pytest.raises(PublishError, match="does not hold the ids"):
        gather(with_cell(rows, "row_id", 3, "0" * 32), decision, steps=steps, **FACTS)
