"""Token ids that exist already: every form gives the ids that are in it, and what cannot be meant is refused."""
# pyright: reportUnknownLambdaType=false, reportPrivateUsage=false

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import save, save_file
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from scalar_sae import readers
from scalar_sae.corpora import Corpus, load_corpus, load_held_out, load_texts, windows
from scalar_sae.errors import UserError
from scalar_sae.tokenizer import Ascii, Pretrained

IDS = np.random.default_rng(0).integers(5, 500, 2000)


@pytest.fixture(scope="module")
def words() -> Pretrained:
    """500 tokens: <s> is 0, </s> is 1, <pad> is 2; every text begins with <s>."""
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2, **{f"w{n}": n for n in range(3, 500)}}
    inner = Fast(models.WordLevel(vocabulary, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return Pretrained(fast, "words")


def all_of(corpus: Corpus) -> list[int]:
    return torch.cat([corpus.train, corpus.val]).tolist()


def npy(ids: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, ids)
    return out.getvalue()


def llm_c(ids: np.ndarray, magic: int = 20240520, version: int = 1, kind: str = "<u2") -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    return header.tobytes() + ids.astype(kind).tobytes()


FORMS: dict[str, tuple[str, bytes]] = {
    "npy": ("t.npy", npy(IDS.astype(np.uint16))),
    "npy of int64": ("t.npy", npy(IDS)),
    "npy of big-endian integers": ("t.npy", npy(IDS.astype(">u4"))),
    "npy of one row": ("t.npy", npy(IDS[None])),
    "bin": ("t.bin:uint16", IDS.astype("<u2").tobytes()),
    "bin of 4 bytes": ("t.bin:uint32", IDS.astype("<u4").tobytes()),
    "big-endian bin": ("t.bin:>u4", IDS.astype(">u4").tobytes()),
    "llm.c": ("t.bin", llm_c(IDS)),
    "llm.c of 4 bytes": ("t.bin", llm_c(IDS, 20240801, 7, "<u4")),
    "safetensors": ("t.safetensors", save({"ids": IDS.astype(np.int32)})),
    "named tensor": ("t.safetensors#b", save({"a": IDS[:5], "b": IDS})),
    "json lines": ("t.jsonl", json.dumps({"input_ids": IDS.tolist()}).encode()),
}


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_ids(form: str, packed: str, tmp_path: Path, words: Pretrained):
    spec, content = FORMS[form]
    name = spec.split(":")[0].split("#")[0]
    pack = {"": bytes, ".gz": gzip.compress, ".zst": lambda x: pa.Codec("zstd").compress(x).to_pybytes()}[packed]
    (tmp_path / f"{name}{packed}").write_bytes(pack(content))
    corpus = load_corpus(str(tmp_path / spec.replace(name, f"{name}{packed}")), words)
    assert all_of(corpus) == IDS.tolist()
    assert (corpus.train.numel(), corpus.train.dtype) == (1792, torch.int16)
    assert corpus.start == (0,)
    said = f"reads them as 'w{IDS[0]} w{IDS[1]}"
    assert any(said in remark for remark in corpus.remarks(128))


def test_ids_are_the_text_they_were_made_of(tmp_path: Path, words: Pretrained):
    (tmp_path / "t.txt").write_text(" ".join(f"w{n}" for n in IDS))
    np.save(tmp_path / "t.npy", IDS)
    text, ids = (load_held_out(str(tmp_path / name), words) for name in ("t.txt", "t.npy"))
    assert text.fingerprint == ids.fingerprint


@pytest.mark.parametrize("name", ["t.bin.json", "t.json"])
def test_the_type_may_be_said_in_a_file_beside(name: str, tmp_path: Path, words: Pretrained):
    (tmp_path / "t.bin").write_bytes(IDS.astype("<u2").tobytes())
    (tmp_path / name).write_text('{"dtype": "uint16"}')
    assert all_of(load_corpus(str(tmp_path / "t.bin"), words)) == IDS.tolist()
    with pytest.raises(UserError, match="contradict each other: uint32 by its address, uint16 by its JSON file"):
        load_corpus(str(tmp_path / "t.bin:uint32"), words)
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name}: says no type of integers"):
        load_corpus(str(tmp_path / "t.bin"), words)


class Runs:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return sys.exit, ("code from a file was run",)


@pytest.mark.parametrize(
    ("spec", "content", "said"),
    [
        ("t.bin", IDS.astype("<u2").tobytes(), "nothing says of which type; write t.bin:uint16"),
        ("t.bin:uint16", IDS.astype("<u4").tobytes(), "every other id is 0 when it is read as uint16"),
        ("t.bin:uint16", IDS.astype(">u4").tobytes(), "every other id is 0 when it is read as uint16"),
        ("t.bin:uint32", IDS.astype("<u2").tobytes(), "integers of another type or byte order"),
        ("t.bin:uint32", IDS.astype(">u4").tobytes(), "integers of another type or byte order"),
        ("t.bin:uint16", IDS.astype(">u2").tobytes(), "integers of another type or byte order"),
        ("t.bin:uint16", IDS.astype("<u2").tobytes()[:-1], "no whole number of uint16"),
        ("t.bin:float32", IDS.astype("<f4").tobytes(), "float32 is no type of token ids"),
        ("t.bin:words", b"1234", "unknown type 'words'"),
        ("t.bin:uint32", llm_c(IDS), "contradict each other: uint32 by its address, uint16 by its header"),
        ("t.bin", llm_c(IDS)[:-2], "its header says 2000 tokens, the file has another size"),
        ("t.bin:uint16", b"", "damaged"),
        ("t.npy", npy(IDS.astype(np.float32)), "holds float32, not token ids; save them as whole numbers"),
        ("t.npy", npy(IDS > 9), "holds bool, not token ids"),
        ("t.npy", npy(IDS - 100), r"holds the token id -\d+, the model's tokenizer ends at 499"),
        ("t.npy", npy(IDS + 1), "holds the token id 500, the model's tokenizer ends at 499"),
        ("t.npy", npy(IDS.astype(np.uint64) + 2**63), "holds the token id 9223372036854776"),
        ("t.npy", npy(IDS.reshape(10, 10, 20)), r"of shape \(10, 10, 20\)"),
        ("t.npy", npy(IDS[:0]), r"of shape \(0,\)"),
        ("t.npy", npy(np.array([Runs()])), "holds Python objects, which are not read"),
        ("t.npy", npy(np.array(["a text"])), "not token ids"),
        ("t.npy", npy(IDS)[:-9], "damaged"),
        ("t.npy", IDS.tobytes(), "is not a .npy file by its content"),
        ("t.bin:uint16", npy(IDS), "is a .npy file by its content"),
        ("t.npy:uint16", npy(IDS), "a .npy file has no :uint16"),
        ("t.npy#a", npy(IDS), "a .npy file has no #a"),
        ("t.npy@train", npy(IDS), "a file has no @train"),
        ("t.safetensors", save({"a": IDS, "b": IDS}), "holds a, b; name one with #"),
        ("t.safetensors#c", save({"a": IDS}), "unknown tensor of .*'c': expected one of a"),
        ("t.safetensors", b"a text", "damaged"),
        ("t.pt", b"\x80\x04", "could run code when it is read; save the ids as .npy"),
        ("t.npz", b"PK\x03\x04", "is not read; save the ids as .npy"),
        ("t.jsonl", b'{"input_ids": [1.5, 2]}', "holds a list of float and int, neither text nor token ids"),
        ("t.jsonl", b'{"input_ids": [7, 9223372036854775808]}', "integers of more than 64 bits"),
        ("t.jsonl", b'{"input_ids": [7, 8], "attention_mask": [1]}', "no list of 0 and 1, one for each token id"),
        ("t.jsonl", b'{"input_ids": [7, 8], "attention_mask": [1, 2]}', "no list of 0 and 1, one for each token id"),
        ("t.jsonl", b'{"input_ids": [7, 600]}', "holds the token id 600"),
        ("t.jsonl", b'{"input_ids": [7, true]}', "holds a list of bool and int, neither text nor token ids"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(spec: str, content: bytes, said: str, tmp_path: Path, words: Pretrained):
    path = tmp_path / spec.split(":")[0].split("#")[0].split("@")[0]
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        load_corpus(f"{tmp_path}/{spec}", words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("start", [0, 1, None])
def test_prompts_that_were_cut_before_stay_prompts(order: Any, start: int | None, tmp_path: Path, words: Pretrained):
    rows = IDS.reshape(200, 10).copy(order)
    if start is not None:
        rows[:, 0] = start
    np.save(tmp_path / "t.npy", rows)
    assert np.load(tmp_path / "t.npy", "r").flags.f_contiguous == (order == "F")
    corpus = load_corpus(str(tmp_path / "t.npy"), words)
    assert corpus.train.shape == (180, 10)
    assert torch.cat([corpus.train, corpus.val]).tolist() == rows.tolist()
    own = rows if start is None else rows[:, 1:]  # a row's own tokens
    assert corpus.start == (start or 0,)
    whole = windows(corpus.train, own.shape[1] + 1, start=corpus.start)
    assert whole.tolist() == [[*corpus.start, *row] for row in own[:180].tolist()]
    cut = windows(corpus.train, 4, start=corpus.start)
    expected = [[*corpus.start, *row[i : i + 3]] for row in own[:180].tolist() for i in range(0, 9, 3)]
    assert cut.tolist() == expected
    left = own.shape[1] % 3
    assert any(f"the last {left} of every 10" in remark for remark in corpus.remarks(4)) == bool(left)
    assert corpus.context(1024) == own.shape[1] + 1
    with pytest.raises(UserError, match=f"prompts of {own.shape[1] + 1} tokens, not 64; lower the context"):
        windows(corpus.train, 64, start=corpus.start)


def test_without_a_bos_prompts_that_were_cut_before_have_none(tmp_path: Path):
    rows = IDS.reshape(200, 10) % 128
    np.save(tmp_path / "t.npy", rows)
    corpus = load_corpus(str(tmp_path / "t.npy"), Ascii())
    assert windows(corpus.train, 5).tolist() == rows[:180].reshape(360, 5).tolist()


def save_rows(form: str, path: Path, rows: list[list[int]], mask: list[list[int]] | None = None) -> None:
    columns = {"input_ids": rows} | ({} if mask is None else {"attention_mask": mask})
    if form == "saved":
        datasets.Dataset.from_dict(columns).save_to_disk(path)
    elif form == "folder":
        datasets.Dataset.from_dict(columns).to_parquet(path / "train.parquet")
    else:
        path.write_text(
            "".join(
                json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in zip(*columns.values(), strict=True)
            )
        )


@pytest.mark.parametrize("form", ["saved", "folder", "t.jsonl"])
def test_rows_of_one_length_are_prompts_and_others_documents(form: str, tmp_path: Path, words: Pretrained):
    rows = IDS.reshape(50, 40).tolist()
    save_rows(form, tmp_path / form, rows)
    corpus = load_corpus(str(tmp_path / form), words)
    assert (corpus.train.shape, corpus.val.tolist(), corpus.joined_by) == ((45, 40), rows[45:], None)
    ragged = [rows[0][:3], rows[1][:5], [*rows[2][:4], 1], rows[3][:2], [0, *rows[4][:2]]]
    save_rows(form, tmp_path / f"ragged-{form}", ragged)
    corpus = load_corpus(f"{tmp_path}/ragged-{form}#input_ids", words)
    # </s> between documents, but not where one ends with it or the next begins with <s>
    assert all_of(corpus) == [*ragged[0], 1, *ragged[1], 1, *ragged[2], *ragged[3], *ragged[4]]
    assert corpus.joined_by == "</s>"


@pytest.mark.parametrize("form", ["saved", "folder", "t.jsonl"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_the_attention_mask_hides_is_padding(side: str, form: str, tmp_path: Path, words: Pretrained):
    documents = [IDS[:7].tolist(), IDS[7:12].tolist(), IDS[12:20].tolist()]
    pads = [[2] * (8 - len(document)) for document in documents]
    rows = [[*p, *d] if side == "left" else [*d, *p] for d, p in zip(documents, pads, strict=True)]
    save_rows(form, tmp_path / form, rows, [[int(token != 2) for token in row] for row in rows])
    assert all_of(load_corpus(str(tmp_path / form), words)) == [*documents[0], 1, *documents[1], 1, *documents[2]]


def test_prompts_that_begin_with_padding_are_refused(tmp_path: Path, words: Pretrained):
    rows = IDS.reshape(200, 10).copy()
    rows[3, :2] = 2
    np.save(tmp_path / "t.npy", rows)
    with pytest.raises(UserError, match="rows begin with padding"):
        load_corpus(str(tmp_path / "t.npy"), words)


def test_running_ids_do_not_begin_with_two_bos(tmp_path: Path, words: Pretrained):
    np.save(tmp_path / "t.npy", np.concatenate([[0], IDS]))
    corpus = load_corpus(str(tmp_path / "t.npy"), words)
    assert windows(corpus.train, 8, start=corpus.start)[0].tolist() == [0, *IDS[:7].tolist()]


def test_of_a_large_file_only_what_is_needed_is_read(
    tmp_path: Path, words: Pretrained, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(readers, "LARGEST_WITH_HOLES", 2**60)  # which stand for numbers here
    path = tmp_path / "t.bin"
    with path.open("wb") as file:
        file.write(IDS.astype("<u2").tobytes())
        file.truncate(2**40)  # a hole of a terabyte
    corpus = load_corpus(f"{path}:uint16", words, n_train=1000)
    assert all_of(corpus) == IDS[: len(all_of(corpus))].tolist()
    assert 1000 <= corpus.train.numel() < 1300
    rows = np.lib.format.open_memmap(tmp_path / "t.npy", "w+", np.uint16, (2**30, 100))
    rows[:20] = IDS.reshape(20, 100)
    assert load_corpus(str(tmp_path / "t.npy"), words, n_train=1000).train.shape == (12, 100)


def test_text_is_read_where_a_table_has_both(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"input_ids": [1, 2], "text": "ab"}))
    assert all_of(load_corpus(str(tmp_path / "t.jsonl"), Ascii())) == [97, 98]
    assert all_of(load_corpus(f"{tmp_path / 't.jsonl'}#input_ids", Ascii())) == [1, 2]


def test_where_text_is_needed_token_ids_are_refused(tmp_path: Path):
    np.save(tmp_path / "t.npy", IDS)
    save_file({"a": IDS}, tmp_path / "t.safetensors")
    (tmp_path / "t.jsonl").write_text('{"input_ids": [1, 2]}')
    for name in ("t.npy", "t.safetensors", "t.jsonl"):
        with pytest.raises(UserError, match="holds token ids; a text is needed here"):
            load_texts(str(tmp_path / name))


def in_shards(folder: Path, form: str) -> str:
    """The ids in three files, the last of them further inside; the address of the folder."""
    (folder / "b").mkdir(parents=True)
    pieces = np.split(IDS, [900, 1500])
    for name, piece in zip(("a0", "a1", "b/0"), pieces, strict=True):
        if form == "npy":
            np.save(folder / name, piece.astype(np.uint16))
        elif form == "rows":
            np.save(folder / name, piece.reshape(-1, 20))
        elif form == "safetensors":
            save_file({"ids": piece}, folder / f"{name}.safetensors")
        else:
            (folder / f"{name}.bin").write_bytes(piece.astype("<u2").tobytes())
            if form == "bin with sidecars":
                (folder / f"{name}.bin.json").write_text('{"dtype": "uint16"}')
    (folder / "README.md").write_text("ids")
    return f"{folder}:uint16" if form == "bin" else str(folder)


@pytest.mark.parametrize("form", ["npy", "rows", "safetensors", "bin", "bin with sidecars"])
def test_a_folder_of_token_ids_is_read_in_the_order_of_names(form: str, tmp_path: Path, words: Pretrained):
    corpus = load_corpus(in_shards(tmp_path / "ids", form), words)
    assert torch.cat([corpus.train, corpus.val]).flatten().tolist() == IDS.tolist()
    assert corpus.val.dim() == (2 if form == "rows" else 1)
    assert load_corpus(corpus.source, words).fingerprint == corpus.fingerprint
    few = load_corpus(corpus.source, words, n_train=700)  # no more than is needed, of two files
    assert few.train.flatten().tolist() == IDS[: few.train.numel()].tolist()
    assert 700 <= few.train.numel() < 1000


def test_folders_of_token_ids_that_do_not_fit_together_are_refused(tmp_path: Path, words: Pretrained):
    np.save(tmp_path / "a.npy", IDS)
    np.save(tmp_path / "b.npy", IDS.astype(np.uint16))
    with pytest.raises(UserError, match=r"its files hold int64 \[n\] and uint16 \[n\]; give files of one kind"):
        load_corpus(str(tmp_path), words)
    (tmp_path / "b.npy").unlink()
    (tmp_path / "b.txt").write_text("w3 w4")
    with pytest.raises(UserError, match=r"files of several kinds, text \(b.txt\), ids \(a.npy\)"):
        load_corpus(str(tmp_path), words)
    for names in (("train.npy", "val.npy"), ("fineweb_train_000001.npy", "fineweb_val_000000.npy")):
        folder = tmp_path / names[0]
        folder.mkdir()
        for name in names:
            np.save(folder / name, IDS)
        with pytest.raises(UserError, match=f"holds {names[0]} and {names[1]}, which are different splits"):
            load_corpus(str(folder), words)
        (folder / names[1]).unlink()
        assert all_of(load_corpus(str(folder), words)) == IDS.tolist()


@pytest.mark.parametrize("column", ["tokens", "input_ids"])
def test_words_in_a_column_of_token_ids_are_no_text_unless_they_are_named(
    column: str, words: Pretrained, tmp_path: Path
):
    rows = [{column: ["w5", "w6", "w7"], "ner_tags": [0, 1, 0]}] * 400
    path = tmp_path / "ner.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(UserError, match=f"row 1: '{column}' holds text, not token ids; .*#{column}") as caught:
        load_corpus(str(path), words)
    assert "\n" not in str(caught.value)
    assert all_of(load_corpus(f"{path}#{column}", words))[:3] == [5, 6, 7]
