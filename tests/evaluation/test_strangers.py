"""SAEs in other people's folders are measured and read, and their folders stay as they were."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from scalar_sae.records.results import Results
from scalar_sae.saes.export import export
from scalar_sae.saes.store import find_saes
from tests.test_study import scalar


@pytest.fixture
def stranger(features_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's SAEs as SAELens keeps them, in a folder that nobody may write into; the current folder is empty."""
    folder = tmp_path / "theirs" / "lens"
    export(list(find_saes(features_run)), "saelens", folder, model="toy")
    shutil.copy(features_run / "text.txt", tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def options(run: Path) -> list[str]:
    return ["--lm", str(run / "lm"), "--tokens", "../text.txt", "--prompts", "24", "--context", "32"]


def test_records_go_to_the_current_folder(features_run: Path, stranger: Path):
    before = contents(stranger)
    done = scalar("measure", stranger, *options(features_run))
    assert "left as it is; records go to scalar-lens" in done.stderr
    scalar("features", stranger, *options(features_run), "--edges", "none")
    results = Results.read(Path("scalar-lens/results.json"))
    assert {record.site for record in results.saes} == {record.site for record in results.reading} == {
        "resid_mid.0", "resid_post.0",
    }  # fmt: skip
    assert (Path("scalar-lens") / "features" / "topk" / "resid_mid.0" / "page" / "index.html").is_file()
    assert contents(stranger) == before
    assert [path.name for path in Path().iterdir()] == ["scalar-lens"]


def test_or_to_the_one_that_is_named(features_run: Path, stranger: Path, tmp_path: Path):
    before, run = contents(stranger), contents(features_run)
    scalar("measure", stranger / "topk", *options(features_run), "--out", "mine")
    assert len(Results.read(Path("mine/results.json")).saes) == 2
    scalar("features", features_run, *options(features_run), "--edges", "none", "--out", "pages")
    assert len(Results.read(Path("pages/results.json")).reading) == 2
    assert (contents(stranger), contents(features_run)) == (before, run)


def test_records_of_others_are_not_replaced(features_run: Path, stranger: Path, tmp_path: Path):
    scalar("measure", stranger, *options(features_run))
    other = Path(shutil.copytree(stranger, tmp_path / "others" / "lens"))
    done = scalar("measure", other, *options(features_run), check=False)
    assert done.returncode == 2
    assert "scalar-lens: holds other tables" in done.stderr
    assert "choose another --out" in done.stderr


def test_nothing_is_left_of_a_command_that_was_wrong(
    features_run: Path, stranger: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # no model of that name is looked for
    for wrong in (["--prompts", "100000"], ["--lm", "nowhere"], ["--tokens", "nowhere"]):
        assert scalar("measure", stranger, *options(features_run), *wrong, check=False).returncode == 2
        assert scalar("features", stranger, *options(features_run), *wrong, check=False).returncode == 2
    assert list(Path().iterdir()) == []
