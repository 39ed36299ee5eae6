"""Rows of files and hub data sets, and what their errors name."""

import json
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from motet.base import json_list as json_list_of
from motet.base.errors import UserError
from motet.base.json_list import read_list
from motet.base.tables import Row, is_hub_id, read_rows
from motet.data.conversations import read_conversations


def lines(path: Path, *texts: str) -> str:
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return str(path)


def test_a_row_knows_its_line_when_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", '{"x": 1}', "", '{"x": 2}')
    assert list(read_rows(path)) == [Row(f"{path}, line 1", {"x": 1}), Row(f"{path}, line 3", {"x": 2})]


def test_a_broken_line_comes_as_an_error_and_the_rows_after_it_still_come(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", '{"x": 1', "[1]", '{"x": 2}')
    broken, wrong, good = read_rows(path)
    assert isinstance(broken, UserError) and f"{path}, line 1: not JSON" in str(broken)
    assert isinstance(wrong, UserError) and "line 2: a JSON object was expected" in str(wrong)
    assert isinstance(good, Row)


def test_a_folder_gives_its_files_in_order_of_name_and_parquet_rows_count_from_one(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "b.parquet")
    lines(tmp_path / "a.jsonl", '{"x": 0}')
    (tmp_path / "c.json").write_text('[{"x": 3}]')
    (tmp_path / "README.md").write_text("not data")
    rows = list(read_rows(str(tmp_path)))
    assert [row.values["x"] for row in rows if isinstance(row, Row)] == [0, 1, 2, 3]
    assert isinstance(rows[2], Row) and rows[2].place.endswith("b.parquet, row 2")


def test_what_hugging_face_datasets_saved_is_read_by_its_split(tmp_path: Path) -> None:
    import pyarrow as pa

    def save(folder: Path, values: list[int]) -> None:
        folder.mkdir()
        table = pa.table({"x": values})
        file = folder / "data-00000-of-00001.arrow"
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table, max_chunksize=200)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
        (folder / "dataset_info.json").write_text("{}")

    both = tmp_path / "both"
    both.mkdir()
    save(both / "train", list(range(300)))
    save(both / "test", [7])
    (both / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    rows = [row for row in read_rows(str(both)) if isinstance(row, Row)]
    assert [row.values["x"] for row in rows] == list(range(300)) and rows[-1].place.endswith("arrow, row 300")
    assert [row.values["x"] for row in read_rows(str(both / "test")) if isinstance(row, Row)] == [7]
    with pytest.raises(UserError, match="there is no split 'dev'; known are 'test', 'train'"):
        next(read_rows(str(both), "dev"))
    (both / "test" / "data-00000-of-00001.arrow").write_text("no")
    with pytest.raises(UserError, match="not a readable Arrow file"):
        next(read_rows(str(both), "test"))


def test_a_copy_of_a_data_sets_repository_is_read_by_its_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lines(tmp_path / "data" / "train-00000-of-00001.jsonl", '{"x": 1}')
    lines(tmp_path / "data" / "test-00000-of-00001.jsonl", '{"x": 2}')
    (tmp_path / "README.md").write_text("a card")
    assert [row.values["x"] for row in read_rows(str(tmp_path)) if isinstance(row, Row)] == [1]
    assert [row.values["x"] for row in read_rows(str(tmp_path), "test") if isinstance(row, Row)] == [2]
    with pytest.raises(UserError, match=r"none of its files is of the split 'dev' \(it holds data/test"):
        next(read_rows(str(tmp_path), "dev"))


def test_columns_rename_and_reach_into_nested_objects(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", '{"q": "2+2?", "model": {"truth": "4"}, "id": 7}')
    (row,) = read_rows(path, columns={"prompt": "q", "answer": "model.truth"})
    assert isinstance(row, Row)
    assert (row.get("prompt"), row.get("answer"), row.get("id")) == ("2+2?", "4", 7)


def test_an_unknown_column_names_the_nearest_one(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", '{"question": "2+2?"}')
    (error,) = read_rows(path, columns={"prompt": "questoin"})
    assert isinstance(error, UserError)
    assert "line 1" in str(error) and "'questoin'" in str(error) and "did you mean 'question'" in str(error)


def test_a_missing_field_names_line_field_and_the_nearest_column() -> None:
    row = Row("a.jsonl, line 3", {"promt": "hi", "other": None})
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: field 'prompt' is missing; did you mean 'promt'\?"):
        row.text("prompt")
    with pytest.raises(UserError, match="field 'promt' must be text, got 3"):
        Row("a.jsonl, line 4", {"promt": 3}).text("promt")


@pytest.mark.parametrize("name", ["no-such-file.jsonl", "a/b/c", "./a/b"])
def test_a_path_that_does_not_exist_is_refused_before_any_network(name: str) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        next(read_rows(name))


def test_an_unknown_kind_of_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n")
    with pytest.raises(UserError, match=r"unknown kind of file '\.csv'"):
        next(read_rows(str(tmp_path / "a.csv")))
    with pytest.raises(UserError, match="holds no data file"):
        next(read_rows(str(tmp_path)))


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file"):
        next(read_rows(str(tmp_path / "a.parquet")))


def test_a_hub_id_has_one_slash_and_no_data_suffix() -> None:
    assert is_hub_id("owner/name") and is_hub_id("owner/name:config")
    assert not is_hub_id("data/train.jsonl") and not is_hub_id("./data/train") and not is_hub_id("name")


def test_a_hub_data_set_is_loaded_by_name_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, configuration: str | None, split: str, streaming: bool) -> list[dict[str, int]]:
        asked.append((name, configuration, split, streaming))
        if name == "owner/private":
            raise OSError("gated\nlong explanation")
        return [{"x": 1}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert list(read_rows("owner/name:config", "test")) == [Row("owner/name:config [test], row 1", {"x": 1})]
    assert list(read_rows("owner/name", "test", once=True)) == [Row("owner/name [test], row 1", {"x": 1})]
    assert asked == [("owner/name", "config", "test", False), ("owner/name", None, "test", True)]
    with pytest.raises(UserError, match=r"cannot be loaded from the hub \(gated\)"):
        next(read_rows("owner/private"))


class Living(dict[str, Any]):
    """A row of which it is known how many of its kind there are."""

    count = 0

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        Living.count += 1

    def __del__(self) -> None:
        Living.count -= 1


def test_conversations_of_a_hub_data_set_are_read_as_they_arrive_and_never_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_dataset(name: str, configuration: str | None, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
        assert streaming, "the whole would be fetched and kept"
        for number in range(5000):
            yield Living({"prompt": f"{number} + 1 = ?", "completion": str(number + 1)})

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    seen, most = 0, 0
    for conversation in read_conversations("owner/name"):
        seen, most = seen + 1, max(most, Living.count)
        assert conversation.messages[0]["content"] == f"{seen - 1} + 1 = ?"
    assert seen == 5000 and most <= 3


def test_a_hub_data_set_that_breaks_off_says_after_which_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, configuration: str | None, split: str, streaming: bool) -> Iterator[dict[str, int]]:
        yield {"x": 1}
        raise ConnectionError("Server Disconnected")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    rows = read_rows("owner/name", once=True)
    assert isinstance(next(rows), Row)
    with pytest.raises(UserError, match=r"loaded from the hub after row 1 \(Server Disconnected\)"):
        next(rows)


def test_the_real_loader_streams_a_repository_of_parquet_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    datasets = pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    for shard in range(2):
        pq.write_table(
            pa.table({"x": [2 * shard, 2 * shard + 1]}), tmp_path / "data" / f"train-0000{shard}-of-00002.parquet"
        )
    load = datasets.load_dataset

    def from_folder(name: str, configuration: str | None, **options: Any) -> Any:
        return load(str(tmp_path), configuration, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    rows = [row.values["x"] for row in read_rows("owner/name", once=True) if isinstance(row, Row)]
    assert rows == [0, 1, 2, 3] and not list((tmp_path / "cache").rglob("*.arrow"))
    with pytest.raises(UserError, match="cannot be loaded from the hub"):
        next(read_rows("owner/name", "dev", once=True))


# ---- JSON lists


def json_list(path: Path, text: str) -> list[Any]:
    path.write_text(text, encoding="utf-8")
    return list(read_list(path))


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_a_json_list_is_read_the_same_wherever_its_pieces_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_list_of, "CHUNK", chunk)
    values = [
        {"a": [1, -2.5e-3, True, None, "\\u00e9 \\n"]},
        "]",
        12345,
        -1.5,
        {},
        {"b": {"c": '"'}},
        float("inf"),
        [],
        "x" * 50,
    ]
    for indent in (None, 2):
        for ascii_only in (True, False):
            text = json.dumps([*values, "\u00e9\U0001f600"], indent=indent, ensure_ascii=ascii_only)
            assert json_list(tmp_path / "a.json", text) == [*values, "\u00e9\U0001f600"]
    assert json_list(tmp_path / "a.json", " [ ] ") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"x": 1}\n{"x": 2}', r"a\.json: a \.json file must hold one list of objects\. JSON Lines belong"),
        ("", "must hold one list"),
        ('[{"x": 1}, {"x" 2}, {"x": 3}]', r"a\.json, item 2: not JSON \(Expecting ':' delimiter\)"),
        ('[{"x": 1} {"x": 2}]', "item 1: not JSON .a comma or the end of the list is missing after it"),
        ('[{"x": 1}', "item 1: not JSON .a comma or the end of the list is missing after it"),
        ('[{"x": 1},]', "item 2: not JSON .Expecting value"),
        ('[{"x": "1}]', "item 1: not JSON .Unterminated string"),
        ('[{"x": 1}] [', "after the list of 1 items there is more"),
    ],
)
def test_a_broken_json_list_names_the_item(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        json_list(tmp_path / "a.json", text)


def test_of_a_json_list_no_more_is_read_than_its_first_item_needs_and_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_list_of, "CHUNK", 1 << 12)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "x" * 1000, "n": n} for n in range(3000)]))
    tracemalloc.start()
    numbers = [row.values["n"] for row in read_rows(str(path)) if isinstance(row, Row)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert numbers == list(range(3000)) and path.stat().st_size > 3_000_000 and peak < 600_000
    with path.open("r+") as file:  # what comes later may be anything
        file.seek(100_000)
        file.write("\\")
    assert next(read_list(path))["n"] == 0


def test_an_item_without_an_end_is_refused_before_it_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_list_of, "CHUNK", 100)
    monkeypatch.setattr(json_list_of, "LONGEST", 1000)
    with pytest.raises(UserError, match=r"item 1: not JSON \(no end within 1,000 characters"):
        json_list(tmp_path / "a.json", '["' + "x" * 100_000)


def test_without_the_extra_a_hub_id_says_which_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"motet\[hub\]"):
        next(read_rows("owner/name"))


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    (error,) = read_rows(lines(tmp_path / "a.jsonl", json.dumps(["word"] * 100)))
    assert isinstance(error, UserError) and str(error).endswith("...") and len(str(error)) < 300
