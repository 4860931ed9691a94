"""Stopping on a signal, going on after a kill."""

import os
import signal
from pathlib import Path

import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.io import Events
from scalar_sae.saes.methods.base import Acts, Progress
from scalar_sae.saes.methods.topk import TopKTrainee
from scalar_sae.sites import Site
from tests.forks import Forks
from tests.training.runs import STATEFUL, TOPK, trained, write_text


class Stop(Events):
    """Sends a signal to this process when the log hears of a step."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(None)
        self._step, self._number = step, number

    def __call__(self, kind: str, **fields: object) -> None:
        if fields.get("step") == self._step:
            os.kill(os.getpid(), self._number)


def test_a_signal_ends_the_step_and_leaves_a_checkpoint(tmp_path: Path, text: Path, request: pytest.FixtureRequest):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has SIGINT ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    saes, at = [TOPK, *STATEFUL[:2]], {"tokens": 2_400, "validations": 12}
    whole = trained(tmp_path, text, "whole", saes, **at)
    for number in (signal.SIGTERM, signal.SIGINT):
        folder = tmp_path / number.name
        with pytest.raises(SystemExit) as end:
            trained(tmp_path, text, folder.name, saes, Stop(22, number), **at)
        assert end.value.code == 128 + number
        assert not list(folder.rglob("sae.json"))
        position = torch.load(folder / "checkpoint.pt", weights_only=True)["position"]
        assert position[0] == 22
        assert position[2] == 2, "in the middle of a buffer of four batches"
        cut = trained(tmp_path, text, folder.name, saes, **at)
        for name, group in whole.items():
            for site, sae in group.items():
                assert torch.equal(sae.W_enc, cut[name][site].W_enc)
                if hasattr(sae.activation, "threshold"):
                    assert torch.equal(sae.activation.threshold, cut[name][site].activation.threshold)


def test_a_signal_during_the_last_validation_is_heard(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]):
    class StopAtTheEnd(Stop):
        def __call__(self, kind: str, **fields: object) -> None:
            if kind == "validate":
                super().__call__(kind, **fields)

    with pytest.raises(SystemExit) as end:
        trained(tmp_path, text, "run", [TOPK], StopAtTheEnd(20, signal.SIGTERM), validations=1)
    assert end.value.code == 143
    assert "stopped after the last step; the SAEs are written" in " ".join(capsys.readouterr().err.split())
    assert len(list((tmp_path / "run").rglob("sae.json"))) == 2
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_weights_that_are_not_finite_are_in_no_checkpoint(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch):
    """The loss of step 13 is finite and its gradient is not; a checkpoint is due at every step."""
    whole = TopKTrainee.losses

    def losses(self: TopKTrainee, acts: Acts, progress: Progress) -> dict[Site, torch.Tensor]:
        found = whole(self, acts, progress)
        if progress == (12, 20) and self.sites == (Site("resid_post", 1),):
            found[self.sites[0]] += (0 * self.b_dec).sum().sqrt()  # 0, with a slope of 0 times infinity
        return found

    monkeypatch.setattr(TopKTrainee, "losses", losses)
    monkeypatch.setattr("scalar_sae.training.loop.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(UserError, match=r"^topk/resid_post.1: the gradient is not finite by step 13; [^\n]*$"):
        trained(tmp_path, text, "run", [TOPK])
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert saved["position"][0] == 12
    for learner in saved["learners"]:
        assert all(tensor.isfinite().all() for tensor in learner["weights"].values())
    assert not list(tmp_path.rglob("sae.json"))


def test_a_damaged_checkpoint_is_named(tmp_path: Path, text: Path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "checkpoint.pt"
    torch.save({"learners": []}, path)
    whole = path.read_bytes()
    for content in (whole, whole[:-50], b"", b"garbage that is longer than a few bytes"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"^[^\n]*checkpoint.pt: not a checkpoint of these SAEs \([^\n]*$"):
            trained(tmp_path, text, "run", [TOPK])


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, text: Path):
    """Its SAEs have the same shapes, and were trained at another rate or on another text."""
    other = write_text(tmp_path / "other.txt")
    other.write_text(other.read_text()[::-1])
    with pytest.raises(SystemExit):
        trained(tmp_path, text, "run", [TOPK], Stop(10, signal.SIGTERM), validations=20)
    whole = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    for from_text, changes, said in ((text, {"lr": 0.5}, r"train\.lr: .* here, 0\.5 asked"), (other, {}, r"data\.")):
        with pytest.raises(UserError, match=rf"^[^\n]*not a checkpoint of these SAEs \(of another run: [^\n]*{said}"):
            trained(tmp_path, from_text, "run", [TOPK], **{"validations": 20, **changes})
        assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == whole
        assert not list((tmp_path / "run").rglob("sae.json"))


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no file size limits on this system")
def test_a_full_disk_is_said_with_file_and_reason(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch):
    import resource

    monkeypatch.setattr("scalar_sae.training.loop.CHECKPOINT_SECONDS", 0.0)
    before, most = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    expected = ((None, "checkpoint.pt", "--out"), (tmp_path / "cache", "buffer-000000.safetensors", "--cache"))
    for cache, file, option in expected:
        said = rf"{file}: cannot be written \(.*File too large.*\); free space or choose another {option}"
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most[1]))
            with pytest.raises(UserError, match=rf"^[^\n]*/{said}$"):
                trained(tmp_path, text, f"run {cache is None}", [{**TOPK, "expansion": 8}], cache=cache)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)
    signal.signal(signal.SIGXFSZ, before)
    assert not list(tmp_path.rglob(".*.partial"))


RUN = """
import os, signal, sys; from pathlib import Path
from scalar_sae import distributed
from scalar_sae.training import loop; loop.CHECKPOINT_SECONDS = 0.0
from tests.training import runs
folder, text, cache = map(Path, sys.argv[1:4])
name, file, left = *sys.argv[4:6], int(sys.argv[6])

def until_a_file_is_renamed(event, arguments):
    global left
    if event == "os.rename" and Path(arguments[1]).name.startswith(file):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(until_a_file_is_renamed)
distributed.init()
runs.trained(folder, text, name, [runs.TOPK, runs.STAIRS, *runs.STATEFUL], tokens=3_000, cache=cache)
"""


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, text: Path, forks: Forks, n_workers: int
):
    """Killed while the seventh checkpoint is not yet in place, then while a buffer of its cache is not."""

    def run(name: str, file: str, n: int) -> list[int]:
        ends = forks.ends(RUN, tmp_path, text, tmp_path / f"cache of {name}", name, file, n, n_workers=n_workers)
        return [end.code for end in ends]

    assert run("whole", "", 0) == [0] * n_workers
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    for file, n, step in (("checkpoint.pt", 7, 6), ("buffer-", 2, 12))[: 3 - n_workers]:
        assert run("killed", file, n)[0] == -signal.SIGKILL
        assert torch.load(checkpoint, weights_only=True)["position"][0] == step
        assert not list((tmp_path / "killed").rglob("sae.json"))
    assert run("killed", "", 0) == [0] * n_workers
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors"))
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
    assert not checkpoint.exists()
