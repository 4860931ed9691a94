"""From a pair to a record: invariances, resuming, controls, several workers, budgets."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.records.results import Curves, Record
from scalar_sae.saes.activation import TopK
from scalar_sae.saes.sae import SAE
from scalar_sae.scoring.ablation import mean_ablated
from scalar_sae.scoring.config import ScoreConfig, counts_of
from scalar_sae.scoring.pair import Pair, read
from scalar_sae.scoring.rankings.from_file import saved_scores
from scalar_sae.scoring.rankings.order import keep_indices
from scalar_sae.scoring.rankings.registry import find_ranking, rank
from scalar_sae.scoring.rankings.unfinished import Unfinished
from scalar_sae.scoring.resume import Partial
from scalar_sae.scoring.score import score
from scalar_sae.scoring.texts import Texts
from tests.forks import Forks
from tests.helpers import tiny_pair

TEXTS = Texts(torch.arange(30).view(3, 10) % 32, torch.arange(5, 25).view(2, 10), {"fingerprint": "f"})
CONFIG = ScoreConfig(rank_prompts=3, prompts=2, context=10)


def scored(pair: Pair, ranking: str = "leave_one_out", config: ScoreConfig = CONFIG, **options: Any) -> Record:
    return score(pair, TEXTS, config.model_copy(update={"ranking": ranking}), method="m", **options)


def padded(sae: SAE, n: int) -> SAE:
    """With n latents that never fire."""
    g = torch.Generator().manual_seed(9)
    W_enc = torch.cat([sae.W_enc, torch.zeros(sae.d_model, n)], 1)
    b_enc = torch.cat([sae.b_enc, torch.full((n,), -1.0)])
    return replace(
        sae, W_enc=W_enc, b_enc=b_enc, W_dec=torch.cat([sae.W_dec, torch.randn(n, sae.d_model, generator=g)])
    )


def stopping_at(n: int) -> Callable[[float], None]:
    """A user who presses Ctrl-C when the n-th prompt is done."""
    calls = count(1)

    def done(share: float) -> None:
        if next(calls) == n:
            raise KeyboardInterrupt

    return done


@pytest.mark.parametrize("block", ["ff_block.0", "transformer_block.0"])
def test_dead_latents_do_not_move_the_recovery_scores(block: str):
    pair = tiny_pair(block)
    more = replace(pair, up=padded(pair.up, 7), down=padded(pair.down, 9))
    config = CONFIG.model_copy(update={"edges": "0,1,3,10"})
    counts_of(config.edges, pair.n_edges)
    for ranking in ("leave_one_out", "local"):
        mine, theirs = (scored(one, ranking, config) for one in (pair, more))
        at = [theirs.edges.index(n) for n in (0, 1, 3, 10)[: 3 if ranking == "local" else 4]]
        assert theirs.kl_circuit[at[-1]] != theirs.kl_circuit[0]
        for index in at:
            n = theirs.edges[index]
            assert theirs.kl_circuit[index] == pytest.approx(mine.kl_circuit[mine.edges.index(n)], rel=1e-3, abs=1e-5)
        assert mine.n_live_edges <= theirs.n_live_edges


@pytest.mark.parametrize("ranking", ["leave_one_out_with_prior", "fisher", "local"])
@pytest.mark.parametrize("block", ["ff_block.0", "attn_block.0"])
def test_neither_order_nor_scale_of_latents_matters(block: str, ranking: str):
    pair = tiny_pair(block, kind="relu")
    first = scored(pair, ranking)
    second = scored(replace(pair, up=scaled(shuffled(pair.up), 0), down=scaled(shuffled(pair.down), 1)), ranking)
    assert second.edges_at["90"] == pytest.approx(first.edges_at["90"], rel=0.02)
    assert second.log_area == pytest.approx(first.log_area, rel=0.02)


def shuffled(sae: SAE) -> SAE:
    """The same function of its input: latents in another order."""
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(0))
    return replace(sae, W_enc=sae.W_enc[:, order], b_enc=sae.b_enc[order], W_dec=sae.W_dec[order])


def scaled(sae: SAE, seed: int) -> SAE:
    """The same function of its input: each latent in another unit, a power of two, so that nothing is rounded."""
    scale = 2.0 ** torch.randint(-4, 5, (sae.d_sae,), generator=torch.Generator().manual_seed(seed))
    return replace(sae, W_enc=sae.W_enc * scale, b_enc=sae.b_enc * scale, W_dec=sae.W_dec / scale.unsqueeze(1))


def test_local_and_global_and_random_orders():
    pair = tiny_pair("ff_block.0")
    records = {ranking: scored(pair, ranking) for ranking in ("leave_one_out", "local", "random")}
    assert records["local"].scope == "local"
    at_90 = {ranking: record.edges_at["90"] or np.inf for ranking, record in records.items()}
    assert at_90["local"] <= at_90["leave_one_out"] < at_90["random"]
    for record in records.values():
        assert record.kl_circuit[-1] == pytest.approx(0, abs=1e-5)


def test_mean_ablation_is_another_score():
    pair = tiny_pair("ff_block.0")
    zero, mean = (scored(pair, config=CONFIG.model_copy(update={"ablation": how})) for how in ("zero", "mean"))
    assert zero.kl_circuit[5] != pytest.approx(mean.kl_circuit[5], rel=1e-3)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_how_much_text_a_ranking_has_decides_the_order_alone(ablation: str, tmp_path: Path):
    pair, saved = tiny_pair("ff_block.0"), str(tmp_path / "scores.npy")
    np.save(saved, torch.rand(24, 20, generator=torch.Generator().manual_seed(0)).numpy())
    shares = (CONFIG.model_copy(update={"rank_prompts": n, "ablation": ablation}) for n in (1, 3))
    few, many = (scored(pair, saved, config) for config in shares)
    assert few.n_live_edges == many.n_live_edges
    assert few.prompts == many.prompts
    full = [pair.full_circuit(prompt) for prompt in read(pair, TEXTS.ranking)]
    live = [(torch.cat(acts) > 0).any(0).sum() for acts in ([p.z for p in read(pair, TEXTS.ranking)], full)]
    assert many.n_live_edges == live[0] * live[1]


def test_a_saved_ranking_keeps_its_order(tmp_path: Path):
    """Float32 cannot tell whole numbers beyond 2^24 apart."""
    pair, path = tiny_pair("ff_block.0"), tmp_path / "ranks.npy"
    ranks = np.random.default_rng(0).permutation(480).reshape(24, 20)
    for saved in (
        ranks,
        ranks + 600_000_000,
        ranks.astype(np.int16) - 240,
        ranks.astype(np.uint16),
        ranks * 0.25,
        ranks.astype(np.float16),
    ):
        np.save(path, saved)
        scores = saved_scores(path, pair)
        assert (scores.flatten().argsort() == torch.from_numpy(ranks).flatten().argsort()).all()
        assert keep_indices(scores, np.arange(0, 240), 0)[torch.from_numpy(ranks == 479)].tolist() == [1]
    for wrong, message in (
        (ranks * 1e-48, "too large or too small for float32"),
        (ranks * 10**8, "whole numbers from 0 to 47900000000"),
        (np.where(ranks == 3, np.nan, ranks), "none of them NaN"),
        (ranks * 1j, "real numbers"),
    ):
        np.save(path, wrong)
        with pytest.raises(UserError, match=message):
            saved_scores(path, pair)


def test_a_saved_ranking_is_read_once_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pair, path, reads = tiny_pair("ff_block.0"), tmp_path / "ranks.npy", list[Path]()
    np.save(path, rank(mean_ablated(pair, TEXTS.ranking), TEXTS.ranking, "leave_one_out", 0).numpy())

    def counting(where: Path, of: Pair) -> torch.Tensor:
        reads.append(where)
        return saved_scores(where, of)

    monkeypatch.setattr("scalar_sae.scoring.rankings.from_file.saved_scores", counting)
    assert scored(pair, str(path)).kl_model == scored(pair, "leave_one_out").kl_model
    assert reads == [path]


def test_a_scoring_that_was_stopped_goes_on(tmp_path: Path):
    pair = tiny_pair("transformer_block.0")
    whole = scored(pair)
    with pytest.raises(KeyboardInterrupt):
        scored(pair, partial=tmp_path, on_progress=stopping_at(4))  # three to rank on, one to score
    (folder,) = tmp_path.iterdir()
    assert (folder / "ranking.safetensors").is_file()
    with (folder / "prompts.0.jsonl").open("a") as file:
        file.write('{"number": 1, "kl_mod')  # cut short by a kill
    kept = json.loads((folder / "prompts.0.jsonl").read_text().split("\n")[1])
    assert set(kept) == {"number", "sha256", *Curves.__annotations__}
    again = scored(pair, partial=tmp_path)
    assert again.model_dump(exclude={"seconds"}) == whole.model_dump(exclude={"seconds"})
    assert folder.is_dir()  # until the caller has written the record


@pytest.mark.parametrize("ranking", ["shapley", "leave_one_out_with_prior", "fisher"])
@pytest.mark.parametrize("stop", [2, 3])
@pytest.mark.parametrize("room", [2**30, 24 * 16 * 9])
def test_a_ranking_that_was_stopped_goes_on(
    ranking: str, stop: int, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scalar_sae.scoring.rankings.unfinished.WORTH", 0.0)
    monkeypatch.setattr("scalar_sae.scoring.rankings.unfinished.SELDOM", 0.0)
    pair, passes = tiny_pair("ff_block.0"), count()

    def counted(*args: Any) -> Any:
        next(passes)
        return read(*args)

    monkeypatch.setattr("scalar_sae.scoring.rankings.base.read", counted)
    expected = rank(pair, TEXTS.ranking, ranking, 0, room=room)
    n_whole = next(passes)
    with pytest.raises(KeyboardInterrupt):
        rank(pair, TEXTS.ranking, ranking, 0, stopping_at(stop), room, Unfinished(tmp_path / "r"))
    shares: list[float] = []
    n_before = next(passes)
    assert torch.equal(rank(pair, TEXTS.ranking, ranking, 0, shares.append, room, Unfinished(tmp_path / "r")), expected)
    assert next(passes) - n_before - 1 < n_whole
    assert sum(shares) == pytest.approx(len(TEXTS.ranking))


def test_another_config_does_not_go_on_from_it(tmp_path: Path):
    pair = tiny_pair("ff_block.0")
    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            scored(pair, config=CONFIG.model_copy(update={"seed": seed}), partial=tmp_path, on_progress=stopping_at(4))
        assert len(list(tmp_path.iterdir())) == seed + 1
    scored(pair, "random", partial=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_saes_that_differ_in_their_rule_alone_do_not_share_unfinished_work(tmp_path: Path):
    pair = tiny_pair("ff_block.0", k=3)
    scored(pair, partial=tmp_path)
    scored(replace(pair, down=replace(pair.down, activation=TopK(2))), partial=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    pair = tiny_pair("ff_block.0")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/\w+: cannot be written"):
        scored(pair, partial=tmp_path / "file")
    partial = Partial(tmp_path / "partial", {})
    (folder,) = (tmp_path / "partial").iterdir()
    (folder / "prompts.0.jsonl").mkdir()
    curve = Curves(*(np.zeros((1, 1)) for _ in range(4)), *(np.zeros(1) for _ in range(5)))
    with pytest.raises(UserError, match=r"prompts.0.jsonl: cannot be written \(Is a directory\)"):
        partial.keep_curve(0, curve)


def test_two_workers_find_what_one_finds(forks: Forks):
    program = (
        "from tests.scoring.test_score import scored, tiny_pair\n"
        "from scalar_sae import distributed\n"
        "distributed.init()\n"
        "records = [scored(tiny_pair('transformer_block.0'), name) for name in ('leave_one_out', 'published')]\n"
        "if distributed.rank() == 0: print('|||'.join(r.model_dump_json(exclude={'seconds'}) for r in records))\n"
    )
    one, two = (forks.run(program, n_workers=n).strip().splitlines()[-1] for n in (1, 2))
    assert one == two


def test_budgets_and_counts_that_do_not_fit_are_named():
    pair = tiny_pair("ff_block.0")
    with pytest.raises(UserError, match=r"memory 0.01 GB: 24 x 20 latents need 1.0 GB at the least"):
        scored(pair, config=CONFIG.model_copy(update={"memory": 0.01}))
    with pytest.raises(UserError, match=r"memory 0.01 GB: 24 x 20 latents need 1.0 GB at the least"):
        scored(pair, "local", config=CONFIG.model_copy(update={"memory": 0.01}))
    wide = tiny_pair("ff_block.0", n_down=2**17)
    with pytest.raises(UserError, match="latents need"):  # known before a token is read
        find_ranking("local").room(wide, 1.1, 10, n_counts=30)
    assert find_ranking("local").room(wide, 8.0, 10, n_counts=30) > 0
    with pytest.raises(UserError, match="edges 481: the pair has 480 possible edges"):
        scored(pair, config=CONFIG.model_copy(update={"edges": "481"}))
