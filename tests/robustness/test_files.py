"""Writing whole or not at all, digests that find every changed bit, locks, messages of one line."""
# pyright: reportUnknownLambdaType=false, reportPrivateUsage=false

import os
import random
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel, ConfigDict

from scalar_sae.errors import LONGEST, UserError, one_line, quoted
from scalar_sae.io import atomic_write, claim, write_json, write_text
from scalar_sae.locks import held
from scalar_sae.readers import parse_json, parse_yaml, read_json, read_text
from scalar_sae.saes.store import SaeCard, save_sae
from scalar_sae.sealed import load_checkpoint, load_tensors, save_checkpoint, save_tensors
from scalar_sae.sites import Site
from tests.helpers import random_sae, tiny_lm


class Card(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format_version: int = 1
    written_by: str = "scalar-sae"
    size: int
    rate: float = 0.5


NASTY = "a\nb\x1b[31m\u202e\udcff[/b]\x00"


def test_a_message_is_one_printable_line_whatever_a_value_holds():
    said = str(UserError(f"{NASTY}: is wrong"))
    assert said == r"a\nb\x1b[31m\u202e\udcff[/b]\x00: is wrong"
    assert said.encode("utf-8")


def test_a_long_message_keeps_its_beginning_and_its_remedy():
    said = str(UserError("x" * 10**6 + "; do this"))
    assert len(said) <= LONGEST
    assert said.startswith("xxx")
    assert said.endswith("; do this")
    assert quoted(10**5000) == "a number of thousands of digits"
    assert one_line("naïve – 日本") == "naïve – 日本"


BROKEN_JSON = {
    "empty": b"",
    "cut in half": b'{"size": 3, "ra',
    "latin-1": '{"written_by": "é", "size": 1}'.encode("latin-1"),
    "utf-16": '{"size": 1}'.encode("utf-16"),
    "NaN": b'{"size": 1, "rate": NaN}',
    "overflow": b'{"size": 1, "rate": 1e999}',
    "digits": b'{"size": 1' + b"0" * 5000 + b"}",
    "twenty digits": b'{"size": 99999999999999999999}',
    "deep": b"[" * 100_000,
    "nested": b'{"size": ' + b"[" * 60 + b"]" * 60 + b"}",
    "twice": b'{"size": 1, "size": 2}',
    "text for a number": b'{"size": "1"}',
    "true for a number": b'{"size": true}',
    "missing": b"{}",
    "another field": b'{"size": 1, "more": 2}',
    "a list": b"[1]",
    "null": b"null",
    "zeros": bytes(100),
}


@pytest.mark.parametrize("content", BROKEN_JSON.values(), ids=BROKEN_JSON.keys())
def test_json_that_is_damaged_is_refused_with_its_name_and_stays(tmp_path: Path, content: bytes):
    path = tmp_path / "card.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"card\.json: [^\n]+; restore it from a copy[^\n]*$|nested too deeply"):
        read_json(path, Card, "none here; make one")
    assert path.read_bytes() == content


def test_a_file_of_a_later_version_says_who_wrote_it(tmp_path: Path):
    path = tmp_path / "card.json"
    write_json(path, {"format_version": 2, "written_by": "scalar-sae 7.1", "else": 1})
    with pytest.raises(UserError, match=r"written by scalar-sae 7\.1 \(format_version 2\), this is scalar-sae .*pip"):
        read_json(path, Card, "none here; make one")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "long", "unreadable"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str):
    path = tmp_path / ("n" * 300 if kind == "long" else "x")
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "unreadable":
        path.symlink_to(path)
    with pytest.raises(UserError, match=f"{path.name}: [^\n]+; [^\n]+$"):
        read_text(path, "none here; make one")


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in pairwise("abcdefghi")
)
BROKEN_YAML = {
    "twice": ("a: 1\na: 2", "line 2: .*'a' comes twice"),
    "tag": ("a: !!python/object/apply:os.system [x]", "line 1: .*python/object"),
    "documents": ("a: 1\n---\nb: 2", "line 2: "),
    "tab": ("a:\n\tb: 1", "line 2: "),
    "a number as key": ("1: 2", "the key 1 is not text"),
    "infinite": ("a: {b: .inf}", "a.b = inf: expected a finite number"),
    "twenty digits": ("a: 99999999999999999999", "a = 99999999999999999999: too large"),
    "digits": ("a: 0x" + "f" * 5000, "thousands of digits: too large"),
    "a date": ("a: 2020-01-01", "write text in quotes"),
    "no date": ("a: 2020-13-45", "month"),
    "itself": ("&a [*a]", "nested too deeply"),
    "deep": ("[" * 3000, "nested too deeply"),
    "a list as key": ("? [1]\n: 2", "unhashable"),
    "a control character": ("a: \x00", "not a YAML value"),
    "a bomb": (BOMB, "too many values"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), BROKEN_YAML.values(), ids=BROKEN_YAML.keys())
def test_yaml_that_is_no_plain_object_is_refused(text: str, said: str):
    with pytest.raises(UserError, match=rf"^p\.yaml[^\n]*{said}[^\n]*$"):
        parse_yaml(text, "p.yaml")


def test_plain_yaml_is_read():
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, b: 2}", "") == {"a": {"b": 1}, "c": {"b": 2}}
    assert parse_json('{"a": [1, 2.5, null, true]}', "") == {"a": [1, 2.5, None, True]}


def test_every_changed_bit_of_tensors_is_found(tmp_path: Path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(3), "e": torch.zeros(0, 2)})
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 7):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"t\.safetensors: damaged \([^\n]+\); delete it$"):
            load_tensors(path, "delete it")
    path.write_bytes(content)
    assert torch.equal(load_tensors(path, "")["a"], torch.arange(6.0).view(2, 3))


def test_every_changed_bit_of_a_checkpoint_is_found(tmp_path: Path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"position": (1, 2, 3), "weights": torch.arange(20.0)})
    content, rng = path.read_bytes(), random.Random(0)
    for _ in range(200):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"c\.pt: not a checkpoint \(damaged [^\n]+; delete it$"):
            load_checkpoint(path, "cpu", "a checkpoint", "delete it")
    for short in (b"", content[:-1], content[: len(content) // 2], bytes(len(content))):
        path.write_bytes(short)
        with pytest.raises(UserError, match=r"c\.pt: not a checkpoint \(damaged"):
            load_checkpoint(path, "cpu", "a checkpoint", "delete it")
    path.write_bytes(content)
    assert load_checkpoint(path, "cpu", "", "")["position"] == (1, 2, 3)
    assert zipfile.is_zipfile(path)
    assert torch.load(path, weights_only=True)["position"] == (1, 2, 3)


def test_a_checkpoint_that_was_changed_by_hand_is_found(tmp_path: Path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"position": (1, 2, 3)})
    torch.save({**torch.load(path, weights_only=True), "position": (9, 9, 9)}, path)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path, "cpu", "", "")


def test_a_folder_is_never_removed_for_a_file(tmp_path: Path):
    (tmp_path / "report.html").mkdir()
    (tmp_path / "report.html" / "notes").write_text("mine")
    with pytest.raises(UserError, match=r"report\.html: is a folder, and a file is to be written there; move it away"):
        write_text(tmp_path / "report.html", "page")
    assert (tmp_path / "report.html" / "notes").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_replaces_one_only_if_nothing_is_lost(tmp_path: Path):
    def write(content: str) -> None:
        with atomic_write(tmp_path / "site") as temporary:
            temporary.mkdir()
            (temporary / "latents.parquet").write_text(content)

    write("one")
    write("two")
    assert (tmp_path / "site" / "latents.parquet").read_text() == "two"
    (tmp_path / "site" / "judged.jsonl").write_text("paid for")
    with pytest.raises(UserError, match=r"site: holds judged\.jsonl, which would be lost; move the folder away"):
        write("three")
    assert (tmp_path / "site" / "judged.jsonl").read_text() == "paid for"
    assert (tmp_path / "site" / "latents.parquet").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    (tmp_path / "site" / "judged.jsonl").unlink()
    with held(tmp_path / "site"):
        write("four")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is no folder"), atomic_write(tmp_path / "file") as temporary:
        temporary.mkdir()


def test_leftovers_of_processes_that_have_ended_are_removed_and_others_stay(tmp_path: Path):
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    ).stdout.strip()
    with atomic_write(tmp_path / "mine") as temporary:
        temporary.write_text("x")
        left = temporary.with_name(temporary.name.replace(f".{os.getpid()}.", f".{ended}."))
        left.mkdir()
        (left / "half").write_text("x")
        other = temporary.with_name(temporary.name.replace(f".{os.getpid()}.", ".1."))
        other.write_text("another process writes this")
        write_text(tmp_path / "second", "y")
        assert not left.exists()
        assert other.exists()
        assert temporary.exists()
    assert (tmp_path / "mine").read_text() == "x"


def test_two_writers_of_one_file_never_mix(tmp_path: Path):
    with atomic_write(tmp_path / "f") as one, atomic_write(tmp_path / "f") as two:
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "f").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_what_a_folder_holds_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(str(Path(f"/proc/self/fd/{number}").readlink())))
    with atomic_write(tmp_path / "d") as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "f").write_text("x")
    expected = [str(temporary / "inner" / "f"), str(temporary / "inner"), str(temporary), str(tmp_path)]
    assert synced == expected


CHILD = "import sys; from pathlib import Path; from scalar_sae.locks import held\n"


def test_a_second_process_is_told_who_holds_a_folder(tmp_path: Path):
    script = CHILD + "with held(Path(sys.argv[1])): print('mine')"
    again = [sys.executable, "-c", script, str(tmp_path / "run")]
    with held(tmp_path / "run"), held(tmp_path / "run"):
        done = subprocess.run(again, capture_output=True, text=True)
        assert f"UserError: {tmp_path / 'run'}: in use by process {os.getpid()} on " in done.stderr
        assert " since 20" in done.stderr
    assert not (tmp_path / "run").exists(), "nothing was put into it"
    assert subprocess.run(again, capture_output=True, text=True).stdout == "mine\n"


def test_a_lock_ends_with_its_owner(tmp_path: Path):
    script = CHILD + "import os\nwith held(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert (tmp_path / ".lock").exists()
    with held(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_claim_that_is_damaged_is_not_overwritten(tmp_path: Path):
    claim(tmp_path / "t", {"prompts": 3})
    claim(tmp_path / "t", {"prompts": 3})
    with pytest.raises(UserError, match="prompts: 3 here, 4 asked"):
        claim(tmp_path / "t", {"prompts": 4})
    (tmp_path / "t" / "settings.json").write_text('{"prompts": ')
    with pytest.raises(UserError, match=r"settings\.json: damaged"):
        claim(tmp_path / "t", {"prompts": 3})
    assert (tmp_path / "t" / "settings.json").read_text() == '{"prompts": '


@pytest.mark.parametrize("umask", [0o022, 0o007, 0o077])
def test_every_file_has_the_permissions_that_the_umask_leaves(umask: int, tmp_path: Path):
    """safetensors makes its files for the owner alone; others, as on a cluster, could not read a run."""
    sae, before = random_sae(4, 6, 2, 0), os.umask(umask)
    try:
        save_sae(sae, SaeCard.of(sae, "topk", "topk", Site.parse("resid_post.0"), {}), tmp_path / "sae")
        with atomic_write(tmp_path / "lm") as folder, atomic_write(tmp_path / "acts.safetensors") as file:
            tiny_lm().save(folder)
            save_tensors(file, {"x": torch.zeros(3)})
        (tmp_path / "own").touch()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert {"sae.safetensors", "sae.json", "model.safetensors", "acts.safetensors"} <= modes.keys()
    assert set(modes.values()) == {0o666 & ~umask}
