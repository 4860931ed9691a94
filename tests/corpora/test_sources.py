"""One text in every form in which people keep it, and what is not a text."""
# pyright: reportUnknownLambdaType=false, reportPrivateUsage=false

import contextlib
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from scalar_sae.corpora import Address, Corpus, load_corpus, load_texts
from scalar_sae.corpora.data_sets import streamed
from scalar_sae.corpora.rows import Tally, documents
from scalar_sae.errors import UserError
from scalar_sae.tokenizer import Ascii, Pretrained, byte_pairs

DOCUMENTS = [
    'def f(x):\n    return "a, b"\n' * 20,
    "naïve ☃, one line\r\nand another",
    "NA",
    "null",
    "12.5",
    "  spaces\tand tabs  ",
]
ROWS = [{"id": number, "text": text} for number, text in enumerate(DOCUMENTS)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(scope="module")
def bpe() -> Pretrained:
    return byte_pairs(["".join(DOCUMENTS)], 300)


def joined(documents: list[str], tokenizer: Pretrained) -> list[int]:
    """Documents one by one through the tokenizer itself, with its end-of-text token between them."""
    ids: list[int] = []
    for document in documents:
        ids += [tokenizer.inner.eos_token_id] * bool(ids) + tokenizer.inner(document).input_ids
    return ids


def all_of(corpus: Corpus) -> list[int]:
    return torch.cat([corpus.train, corpus.val]).tolist()


def comma_separated(separator: str) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    writer.writerow(["id", "text"])
    writer.writerows([row["id"], row["text"]] for row in ROWS)
    return out.getvalue().encode()


def arrow(stream: bool) -> bytes:
    out, table = pa.BufferOutputStream(), pa.Table.from_pylist(ROWS)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, table.schema) as writer:
        writer.write_table(table, 2)
    return out.getvalue().to_pybytes()


def parquet() -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), out, row_group_size=2)
    return out.getvalue().to_pybytes()


TABLES: dict[str, Callable[[], bytes]] = {
    "t.jsonl": lambda: LINES.encode(),
    "t.ndjson": lambda: b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n\n").encode(),
    "t.json": lambda: json.dumps(ROWS, indent=1).encode(),
    "lines.json": lambda: LINES.encode(),
    "t.csv": lambda: comma_separated(","),
    "bom.csv": lambda: b"\xef\xbb\xbf" + comma_separated(","),
    "t.tsv": lambda: comma_separated("\t"),
    "t.parquet": parquet,
    "t.arrow": lambda: arrow(stream=False),
    "stream.arrow": lambda: arrow(stream=True),
}
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content).to_pybytes(),
}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_the_same_documents(name: str, packed: str, tmp_path: Path, bpe: Pretrained):
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(PACK[packed](TABLES[name]()))
    corpus = load_corpus(str(path), bpe)
    assert all_of(corpus) == joined(DOCUMENTS, bpe)
    assert (corpus.joined_by, corpus.skipped) == ("<|endoftext|>", 0)
    assert corpus.source == str(path)
    assert load_corpus(f"{path}#text", bpe).fingerprint == corpus.fingerprint


def test_without_an_end_of_text_token_documents_are_joined_by_line_breaks(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text(LINES)
    corpus = load_corpus(str(tmp_path / "t.jsonl"), Ascii())
    assert Ascii().decode(all_of(corpus)) == "\n".join(DOCUMENTS).replace("ï", "?").replace("☃", "?")
    assert (corpus.joined_by, corpus.replaced) == ("\n", 2)
    texts = load_texts(str(tmp_path / "t.jsonl"))
    assert "".join(texts.train + texts.val) == "\n".join(DOCUMENTS)


@pytest.mark.parametrize("packed", PACK)
def test_a_text_file_packed_or_with_a_byte_order_mark_is_the_same_text(packed: str, tmp_path: Path):
    text = "one line\nanother\n" * 100
    (tmp_path / "plain").write_text(text)
    marked = tmp_path / f"t.txt{packed}"
    marked.write_bytes(PACK[packed](b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()))
    plain, other = (load_corpus(str(path), Ascii()) for path in (tmp_path / "plain", marked))
    assert Ascii().decode(all_of(plain)) == text
    assert plain.fingerprint == other.fingerprint
    assert other.replaced == 0


@pytest.mark.parametrize("folder", ["plain", "hf"])
@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv", "t.tsv", "t.parquet", "t.arrow"])
def test_a_folder_of_shards_is_read_in_the_order_of_names(name: str, folder: str, tmp_path: Path, bpe: Pretrained):
    for shard in ("a", "b"):
        for packed in ("", ".gz") if name == "t.jsonl" and shard == "b" else ("",):
            path = tmp_path / "data" / f"{shard}{Path(name).suffix}{packed}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(PACK[packed](TABLES[name]()))
    spec = str(tmp_path) if folder == "plain" else f"hf://{tmp_path}"
    n = len(list((tmp_path / "data").iterdir()))
    assert all_of(load_corpus(spec, bpe)) == joined(DOCUMENTS * n, bpe)


def test_in_a_folder_of_text_files_each_is_a_document(tmp_path: Path, bpe: Pretrained):
    for number, text in enumerate(("one\ntwo\n", "three", "four\n\nfive")):
        (tmp_path / f"{number}.txt").write_text(text)
    assert all_of(load_corpus(str(tmp_path), bpe)) == joined(["one\ntwo\n", "three", "four\n\nfive"], bpe)
    with pytest.raises(UserError, match="a folder of text files has no #text"):
        load_corpus(f"{tmp_path}#text", bpe)


def test_a_folder_of_several_kinds_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(UserError, match=r"several kinds, json \(a.jsonl\), text \(b.txt\)"):
        load_corpus(str(tmp_path), Ascii())


def test_files_that_are_in_no_split_are_said(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.jsonl").write_text(LINES)
    (tmp_path / "more.jsonl").write_text(LINES)
    (tmp_path / "README.md").write_text("What this is.")
    corpus = load_corpus(str(tmp_path), Ascii())
    assert any("not read: more.jsonl" in remark for remark in corpus.remarks(128))


def test_a_split_is_named_with_an_at_sign(tmp_path: Path, bpe: Pretrained):
    (tmp_path / "test.jsonl").write_text(LINES)
    for spec in (str(tmp_path), f"hf://{tmp_path}"):
        with pytest.raises(UserError, match="no split 'train'; name one with @, there are test"):
            load_corpus(spec, bpe)
        assert all_of(load_corpus(f"{spec}@test", bpe)) == joined(DOCUMENTS, bpe)


def test_a_configuration_is_named_with_a_colon(tmp_path: Path, bpe: Pretrained):
    card = ["configs:", *(f"- {{config_name: {n}, data_files: {n}.jsonl}}" for n in ("small", "large"))]
    (tmp_path / "README.md").write_text("\n".join(["---", *card, "---", ""]))
    (tmp_path / "small.jsonl").write_text(LINES[: LINES.index("\n") + 1])
    (tmp_path / "large.jsonl").write_text(LINES)
    assert all_of(load_corpus(f"{tmp_path}:small", bpe)) == joined(DOCUMENTS[:1], bpe)
    assert all_of(load_corpus(f"{tmp_path}:large@train#text", bpe)) == joined(DOCUMENTS, bpe)
    with pytest.raises(UserError, match="name a configuration after a colon, there are small, large"):
        load_corpus(str(tmp_path), bpe)
    with pytest.raises(UserError, match=r"cannot be read from this folder .*medium"):
        load_corpus(f"{tmp_path}:medium", bpe)


@pytest.mark.parametrize("several", [False, True])
def test_a_data_set_that_was_saved_to_disk(several: bool, tmp_path: Path, bpe: Pretrained):
    saved = datasets.Dataset.from_list(ROWS)
    (datasets.DatasetDict({"train": saved, "test": saved.select([0])}) if several else saved).save_to_disk(tmp_path)
    assert all_of(load_corpus(str(tmp_path), bpe)) == joined(DOCUMENTS, bpe)
    if several:
        assert all_of(load_corpus(f"{tmp_path}@test", bpe)) == joined(DOCUMENTS[:1], bpe)
    else:
        with pytest.raises(UserError, match="a data set without splits has no @test"):
            load_corpus(f"{tmp_path}@test", bpe)


NESTED = {
    "doc.text": [{"doc": {"text": text, "n": 1}} for text in DOCUMENTS],
    "messages.content": [{"messages": [{"role": "user", "content": text}]} for text in DOCUMENTS],
    "a.b.c": [{"a": [{"b": {"c": text}}, {"b": {"c": None}}]} for text in DOCUMENTS],
    "with.dot": [{"with.dot": text} for text in DOCUMENTS],
}


@pytest.mark.parametrize("form", ["jsonl", "parquet", "saved"])
@pytest.mark.parametrize("column", NESTED)
def test_a_column_may_lie_inside_another_one(column: str, form: str, tmp_path: Path, bpe: Pretrained):
    path, table = tmp_path / f"t.{form}", pa.Table.from_pylist(NESTED[column])
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in NESTED[column]))
    elif form == "parquet":
        pq.write_table(table, path)
    else:
        datasets.Dataset(table).save_to_disk(path)
    assert all_of(load_corpus(f"{path}#{column}", bpe)) == joined(DOCUMENTS, bpe)
    with pytest.raises(UserError, match="no column 'text'; name one with #, there are"):
        load_corpus(str(path), bpe)


def test_of_a_list_of_texts_the_parts_are_joined_by_line_breaks(tmp_path: Path, bpe: Pretrained):
    (tmp_path / "t.jsonl").write_text(json.dumps({"turns": [{"says": "one"}, {"says": "two"}]}))
    assert all_of(load_corpus(f"{tmp_path / 't.jsonl'}#turns.says", bpe)) == joined(["one\ntwo"], bpe)
    with pytest.raises(UserError, match=r"'turns' holds says; name one of them with a dot, such as #COLUMN.says"):
        load_corpus(f"{tmp_path / 't.jsonl'}#turns", bpe)


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv"])
def test_rows_without_text_are_left_out_and_counted(form: str, tmp_path: Path, bpe: Pretrained):
    rows = [{"text": "one"}, {"text": None}, {"text": "two"}, {"text": ""}, {"text": "three"}]
    path = tmp_path / f"t.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in [{"other": 1}, *rows]))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist([{"text": None}, *rows]), path)
    else:
        path.write_text("text,n\n,0\none,1\n,2\ntwo,3\n,4\nthree,5\n")
    corpus = load_corpus(str(path), bpe)
    assert all_of(corpus) == joined(["one", "two", "three"], bpe)
    assert corpus.skipped == corpus.describe()["skipped"] == 3
    assert corpus.remarks(128) == [f"t.{form}: 3 rows without text were left out"]


def test_halves_of_surrogate_pairs_are_replaced_and_counted(tmp_path: Path, bpe: Pretrained):
    (tmp_path / "t.jsonl").write_text('{"text": "a\\ud83db\\ud83d\\ude00"}')
    corpus = load_corpus(str(tmp_path / "t.jsonl"), bpe)
    assert all_of(corpus) == joined(["a\ufffdb\U0001f600"], bpe)
    assert corpus.remarks(128) == ["t.jsonl: 1 broken characters became U+FFFD"]


def test_no_more_of_a_table_is_read_than_is_needed(tmp_path: Path):
    texts = [f"text number {number:5d}" for number in range(2000)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + "not json")
    corpus = load_corpus(str(tmp_path / "t.jsonl"), Ascii(), n_train=5000)
    assert Ascii().decode(all_of(corpus)) == "\n".join(texts)[: len(all_of(corpus))]
    assert 5000 <= corpus.train.numel() < 5300
    with pytest.raises(UserError, match="line 2001: not JSON"):
        load_corpus(str(tmp_path / "t.jsonl"), Ascii())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", LINES.encode(), "is JSON by its content; name it .jsonl"),
        ("a", b"\n" + LINES.encode(), "is JSON by its content"),
        ("a.txt", json.dumps(ROWS, indent=1).encode(), "is JSON by its content"),
        ("a.txt", b"a\0b\0c\0", "byte 1 is NUL, so it is no text"),
        ("a.txt", "a text".encode("utf-16"), "UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 a.txt"),
        ("a.txt", "na\u00efve".encode("latin-1"), r"not a UTF-8 text file \(byte 2\); if it is text in Latin-1"),
        ("a.txt", gzip.compress(b"a text", mtime=0), "is a .gz file by its content; name it a.txt.gz"),
        ("a.txt", parquet(), "is a .parquet file by its content"),
        ("a.jsonl", parquet(), "is a .parquet file by its content, not .jsonl"),
        ("a.jsonl", b"plain text\n", "line 1: not JSON"),
        ("a.jsonl", b'"text"\n', "line 1: not an object"),
        ("a.jsonl", b'{"text": "\xff"}', "line 1: not UTF-8"),
        ("a.json", b'{\n "text": "one"\n}', "line 1: not JSON"),
        ("a.json", b'["one", "two"]', "entry 1: not an object"),
        ("a.jsonl", b"", "no column 'text'; name one with #, there are none"),
        ("a.jsonl", b'{"text": null}', "none of its rows holds text"),
        ("a.jsonl", b'{"text": null}\n' * 1001, "no text in 'text' of the first 1,000 rows; name another #COLUMN"),
        ("a.jsonl", b'{"body": "one"}', "no column 'text'; name one with #, there are body"),
        ("a.jsonl", b'{"text": 3}', "row 1: 'text' holds int, neither text nor token ids"),
        ("a.jsonl", b'{"text": "one"}\n{"text": [1, 2]}', "some rows hold text, others token ids"),
        ("a.csv", b"text\n1\n2.5\n", "column 'text' holds numbers, not text"),
        ("a.csv", b"text,n\none\n", "line 2: 1 fields, the first line names 2 columns"),
        ("a.csv", b'text\n"one" two\n', "line 2: not CSV"),
        ("a.csv", b"body\none\n", "no column 'text'; name one with #, there are body"),
        ("a.parquet", b"PAR1 and no more", "damaged"),
        ("a.parquet", b"a text", "is not a .parquet file by its content"),
        ("a.arrow", b"a text that is long enough", "damaged"),
        ("a.jsonl.gz", LINES.encode(), "is not a .gz file by its content"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-20], "damaged"),
        ("a.jsonl.zst", PACK[".zst"](LINES.encode())[:-5], "damaged"),
        ("a.zip", b"PK\x03\x04", "is an archive; unpack it first"),
        ("a.pdf", b"%PDF-1.4", "is no plain text"),
        ("a.txt", b"%PDF-1.4", "is a .pdf file by its content, not .txt; is no plain text"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_in_one_line(name: str, content: bytes, said: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        load_corpus(str(tmp_path / name), Ascii())
    assert "\n" not in str(error.value)
    assert str(error.value).startswith((str(tmp_path / name), name))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("t.txt#text", "a text file has no #text"),
        ("t.txt@train", "a file has no @train"),
        ("t.jsonl:uint16", "a file has no :uint16"),
        ("t.jsonl#txet", "unknown column of .*'txet'.* did you mean 'text'"),
        ("t.jsnl", "unknown corpus .*a path that exists"),
        ("t.jsonl#", "unknown corpus .*a path that exists"),
    ],
)
def test_an_address_that_does_not_fit_what_lies_there(spec: str, said: str, tmp_path: Path):
    (tmp_path / "t.txt").write_text("text")
    (tmp_path / "t.jsonl").write_text(LINES)
    with pytest.raises(UserError, match=said):
        load_corpus(str(tmp_path / spec), Ascii())


def test_marks_that_belong_to_a_path_stay_there(tmp_path: Path):
    path = tmp_path / "a:b@c#d.jsonl"
    path.write_text(LINES)
    whole = load_corpus(str(path), Ascii())
    assert whole.fingerprint == load_corpus(f"{path}#text", Ascii()).fingerprint
    assert load_corpus(whole.source, Ascii()).fingerprint == whole.fingerprint


def test_a_relative_path_is_found_again_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "t.jsonl").write_text(LINES)
    monkeypatch.chdir(tmp_path)
    corpus = load_corpus("t.jsonl#text", Ascii())
    monkeypatch.chdir("/")
    assert load_corpus(corpus.source, Ascii()).fingerprint == corpus.fingerprint


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves files open
@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.tsv", "t.parquet"])
def test_a_data_set_on_the_hub_has_the_same_documents(name: str, tmp_path: Path, bpe: Pretrained):
    """The library reads a folder by the code that reads a repository."""
    (tmp_path / f"validation{Path(name).suffix}").write_bytes(TABLES[name]())
    place, tally = str(tmp_path), Tally()
    table = streamed(Address(place, on_hub=True, split="validation"))
    assert list(documents(table, None, tally)) == DOCUMENTS
    with pytest.raises(UserError, match="no split 'train'; name one with @, there are validation"):
        streamed(Address(place, on_hub=True))
    with pytest.raises(UserError, match=r"unknown column of .*'txet'.* did you mean 'text'"):
        list(documents(table, "txet", tally))


def test_of_a_data_set_on_the_hub_a_text_file_is_a_document(tmp_path: Path):
    for number, text in enumerate(("one\n\ntwo\n", "three")):
        (tmp_path / f"{number}.txt").write_text(text)
    table = streamed(Address(str(tmp_path), on_hub=True))
    assert list(documents(table, None, Tally())) == ["one\n\ntwo\n", "three"]


def test_of_a_data_set_on_the_hub_nulls_and_nested_columns(tmp_path: Path):
    rows = [{"doc": {"text": "one"}}, {"doc": {"text": None}}, {"doc": None}, {"doc": {"text": "two"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    tally = Tally()
    assert list(documents(streamed(Address(str(tmp_path), on_hub=True)), "doc.text", tally)) == ["one", "two"]
    assert tally.skipped == 2


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("hf://owner/name", ("owner/name", None, None, None)),
        ("hf://name:english@test#doc.text", ("name", "english", "test", "doc.text")),
        ("hf://owner/name@test", ("owner/name", None, "test", None)),
        ("hf://owner/name#a:b@c", ("owner/name", None, None, "a:b@c")),
    ],
)
def test_the_parts_of_an_address_on_the_hub(spec: str, parts: tuple[str | None, ...]):
    address = Address.parse(spec)
    assert (address.place, address.what, address.split, address.column) == parts
    assert address.on_hub
    assert str(address) == spec


@pytest.mark.parametrize(
    ("spec", "revision"), [("hf://o/n?revision=v1.0", "v1.0"), ("hf://o/n@a#b?revision=pr/3", "pr/3")]
)
def test_a_data_set_is_read_as_it_was_at_a_revision(
    spec: str, revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    address = Address.parse(spec)
    assert (address.place, address.revision, str(address)) == ("o/n", revision, spec)
    (tmp_path / "a.jsonl").write_text(LINES)
    own, asked = datasets.load_dataset_builder, []

    def asking(place: str, name: str | None = None, revision: str | None = None, **options: Any) -> Any:
        asked.append((place, revision))
        return own(str(tmp_path), name, **options)

    monkeypatch.setattr(datasets, "load_dataset_builder", asking)
    with contextlib.suppress(UserError):  # no split `a` there
        streamed(address)
    assert set(asked) == {("o/n", revision)}


@pytest.mark.parametrize("spec", ["hf://owner/name:", "hf://owner/name@#text", "hf://owner/name?revision="])
def test_a_mark_without_a_part_is_refused(spec: str):
    with pytest.raises(UserError, match="nothing follows"):
        Address.parse(spec)


def test_a_folder_that_would_stand_in_for_a_data_set_on_the_hub_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"a folder owner/name lies here; write ./owner/name"):
        load_corpus("hf://owner/name", Ascii())
