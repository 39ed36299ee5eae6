"""Rows of files and hub data sets, and what their errors name."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from motet.base.errors import UserError
from motet.base.tables import Row, is_hub_id, read_rows


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

    def load_dataset(name: str, configuration: str | None, split: str) -> list[dict[str, int]]:
        asked.append((name, configuration, split))
        if name == "owner/private":
            raise OSError("gated\nlong explanation")
        return [{"x": 1}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert list(read_rows("owner/name:config", "test")) == [Row("owner/name:config [test], row 1", {"x": 1})]
    assert asked == [("owner/name", "config", "test")]
    with pytest.raises(UserError, match=r"cannot be loaded from the hub \(gated\)"):
        next(read_rows("owner/private"))


def test_without_the_extra_a_hub_id_says_which_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"motet\[hub\]"):
        next(read_rows("owner/name"))


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    (error,) = read_rows(lines(tmp_path / "a.jsonl", json.dumps(["word"] * 100)))
    assert isinstance(error, UserError) and str(error).endswith("...") and len(str(error)) < 300
