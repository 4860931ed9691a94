"""Two commands that write to one place: the second says who is there, and changes nothing."""

import re
from pathlib import Path

import pytest

from scalar_sae.cli.outputs import making
from scalar_sae.errors import UserError
from tests.cli.test_verbs import arguments
from tests.robustness.test_locks_of_verbs import Other
from tests.test_study import scalar


@pytest.mark.parametrize("verb", ["score", "circuit", "features", "train-lm"])
def test_a_second_command_is_told_who_is_there(verb: str, run: Path, tmp_path: Path, preset: Path, text: Path):
    words = arguments(verb, run, tmp_path, preset, text)
    places = {"features": (tmp_path / "tables", "features"), "train-lm": (tmp_path / "lm", "")}
    folder, name = places.get(verb, (tmp_path, "out.json"))
    if verb != "train-lm":
        words += ["--out", folder if verb == "features" else folder / name]
    with Other(folder, name) as said:
        done = scalar(*words, check=False)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2
        assert re.fullmatch(rf"scalar: {folder / name}: {said}[^\n]+; wait until it ends, or [^\n]+--out", last), last
    assert not (folder / name).exists()
    assert not (folder / "settings.json").exists()


def test_a_results_file_that_was_made_meanwhile_stays(tmp_path: Path):
    out = tmp_path / "out.json"
    with making(out) as partial:
        assert partial is not None
        partial.mkdir()
    assert not list(tmp_path.iterdir()), "what is unfinished is removed when it is finished"

    def stopped() -> None:
        with making(out) as partial:
            assert partial is not None
            partial.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [path.name for path in tmp_path.iterdir()] == ["out.json.partial"]
    out.write_text("theirs")
    with pytest.raises(UserError, match=r"out\.json: exists already; choose another --out"), making(out):
        pass
    assert out.read_text() == "theirs"
    with making(None) as partial:
        assert partial is None
