"""Tables: a list of rows, a data frame, text and HTML."""

import sys

import pyarrow as pa
import pytest

from scalar_sae import Table, UserError

ROWS = Table([{"up": 1, "weight": 0.123456, "text": "a\nb<"}, {"up": 20, "weight": None, "text": ["x", "y"]}])


def test_a_table_is_a_list_of_rows_that_libraries_take():
    pandas = pytest.importorskip("pandas")
    assert ROWS.columns == ["up", "weight", "text"]
    for frame in (ROWS.to_frame(), pandas.DataFrame(ROWS)):
        assert list(frame.columns) == ROWS.columns
        assert frame["up"].tolist() == [1, 20]
    assert list(Table().to_frame().columns) == []
    assert pa.Table.from_pylist(Table(ROWS[:1])).column_names == ROWS.columns


def test_without_pandas_a_frame_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'scalar-sae\[notebook\]'"):
        ROWS.to_frame()


def test_a_table_prints_its_first_rows_and_says_how_many_follow():
    assert repr(ROWS).splitlines() == ["up  weight  text", " 1  0.1235  a\\nb<", "20          x | y"]
    assert repr(Table()) == "no rows"
    many = Table({"n": n} for n in range(1000))
    assert repr(many).splitlines()[-2:] == ["19", "... 980 more rows"]
    assert ROWS._repr_html_().count("<tr>") == 3
    assert "a\\nb&lt;" in ROWS._repr_html_()
    assert "980 more rows" in many._repr_html_()
