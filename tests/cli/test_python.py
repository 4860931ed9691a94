"""What the commands wrote, read back from Python: a run, its records as tables and pictures, its features."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scalar_sae as ss
from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.tables import read_table


def test_a_run_opens_with_all_that_is_in_it(finished_run: Path):
    run = ss.load_run(finished_run)
    assert set(run.saes) == {"topk", "wide"}
    stored, _ = ss.load_sae(finished_run / "saes" / "topk" / "resid_mid.0")
    assert torch.equal(run.saes["topk"]["resid_mid.0"].W_enc, stored.W_enc)
    tokens = run.lm.tokens("a fox jumps")
    assert torch.equal(run.lm.logits(tokens), ss.LanguageModel.load("python-stdlib").logits(tokens))
    pair = run.pair("wide", "ff_block.0")
    assert (pair.up.d_sae, pair.down.d_sae) == (128, 128)
    assert run.results.records == ss.Results.read(finished_run / "results.json").records
    assert run.text.fingerprint == ss.evaluation_text(run.lm, [finished_run]).fingerprint


def test_the_page_on_notebooks_runs_as_it_stands(finished_run: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib.pyplot").switch_backend("Agg")
    page = (Path(__file__).parents[2] / "docs" / "notebook.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    assert code.count('"runs/quickstart"') == 1
    code = code.replace('"runs/quickstart"', repr(str(finished_run))).replace("=20", "=2").replace("=64", "=16")
    found: dict[str, Any] = {}
    exec(code, found)
    pair, record = found["pair"], found["record"]
    assert record.edges[-1] == pair.n_edges
    assert found["some"].n_edges == 500
    assert found["mine"].n_edges == 3
    assert torch.equal(found["own"], pair.lm.hf(found["tokens"]).logits)
    assert not torch.allclose(found["own"], found["spliced"], atol=1e-3)


def test_the_lines_of_the_readme_run_as_they_stand(finished_run: Path):
    pytest.importorskip("matplotlib.pyplot").switch_backend("Agg")
    page = (Path(__file__).parents[2] / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 6
    code = code.replace('"runs/quickstart"', repr(str(finished_run))).replace("=50", "=2, rank_prompts=2, context=16")
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["record"].config["prompts"] == 2


def test_a_run_knows_the_features_that_were_written_into_it(finished_run: Path):
    run = ss.load_run(finished_run)
    features = run.features("topk", "resid_post.0")
    table = read_table(finished_run / "features" / "topk" / "resid_post.0", "latents")
    assert [row["density"] for row in features.table()] == table["density"].to_pylist()
    latent = int(np.argmax(table["density"].to_numpy()))
    rows = features.examples(latent, n=3)
    assert [row["activation"] for row in rows] == sorted((row["activation"] for row in rows), reverse=True)
    assert rows[0]["activation"] == pytest.approx(table["maximum"][latent].as_py())
    with pytest.raises(UserError, match="scalar features"):
        run.features("wide", "resid_post.0")
    with pytest.raises(UserError, match=r"topk: no SAE at resid_mid.3; there are SAEs at resid_pre.0"):
        run.features("topk", "resid_mid.3")


def test_what_is_no_run_is_refused(finished_run: Path, tmp_path: Path):
    for folder in (tmp_path, finished_run / "saes", tmp_path / "nothing"):
        with pytest.raises(UserError, match="not a run directory"):
            ss.load_run(folder)
    with pytest.raises(UserError, match=r"unknown method 'tpk'.*did you mean 'topk'"):
        ss.load_run(finished_run).pair("tpk", "ff_block.0")


def test_the_same_score_from_python_and_from_the_command(finished_run: Path):
    run = ss.load_run(finished_run)
    made = next(record for record in run.results.records if record.method == "topk" and record.block == "ff_block.0")
    settings = {name: made.config[name] for name in ("prompts", "context", "edges", "rank_prompts", "ablation")}
    config = ss.ScoreConfig(ranking=made.ranking, **settings)
    record = ss.score(run.pair("topk", "ff_block.0"), ss.held_out(run.text, config), config, method="topk")
    assert record.kl_model == made.kl_model
    n = made.edges[2]
    texts = ss.held_out(run.text, config)
    edges = ss.rank_edges(ss.prepared(run.pair("topk", "ff_block.0"), texts, config), texts.ranking, made.ranking)
    measured, row = edges.circuit(n).measure(texts.scoring), made.curve()[2]
    assert row["edges"] == measured.edges == n
    for name in ("recovery", "faithfulness", "kl_model", "kl_circuit", "live_edges", "l0_down"):
        assert getattr(measured, name) == pytest.approx(row[name], abs=1e-5)
    assert measured.floor_kl == pytest.approx(made.floor.kl, abs=1e-6)


def with_bands(record: ss.Record) -> ss.Record:
    """The record as if more prompts than the run has had been scored: with intervals of its curves."""
    assert record.ci["kl_model"] is None
    bands = {name: [(n - 0.1, n + 0.2) for n in record.kl_model] for name in ("kl_model", "kl_circuit", "recovery")}
    return record.model_copy(update={"ci": record.ci | bands})


def test_a_curve_is_a_table_of_what_the_record_holds(finished_run: Path):
    record = with_bands(ss.load_run(finished_run).results.records[0])
    rows = record.curve()
    assert [row["edges"] for row in rows] == record.edges
    for name in ("kl_model", "kl_circuit", "live_edges", "l0_down"):
        assert [row[name] for row in rows] == getattr(record, name)
    for row, low_high in zip(rows, record.ci["kl_model"], strict=True):
        assert (row["kl_model_low"], row["kl_model_high"]) == tuple(low_high)
    nothing = record.kl_circuit[0]
    assert [row["recovery"] for row in rows] == pytest.approx([1 - kl / nothing for kl in record.kl_circuit])
    assert rows[0]["recovery"] == 0
    assert [row["faithfulness"] for row in rows] == [1 - kl / record.kl_mean for kl in record.kl_model]
    bare = record.model_copy(update={"ci": {}}).curve()
    assert bare.columns == rows.columns
    assert all(row["recovery_low"] is None for row in bare)


@pytest.mark.parametrize("of", ["recovery", "kl_model", "live_edges"])
def test_a_plot_shows_the_curve_and_its_interval(finished_run: Path, of: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    first, second = map(with_bands, ss.load_run(finished_run).results.records[:2])
    axes = first.plot(of)
    assert second.plot(of, ax=axes) is axes
    shown = [row for row in first.curve() if row["edges"] > 0]
    line = axes.get_lines()[0]
    assert line.get_xdata().tolist() == [row["edges"] for row in shown]
    assert line.get_ydata().tolist() == [row[of] for row in shown]
    assert len(axes.get_lines()) == 2
    assert len(axes.collections) == (0 if of == "live_edges" else 2)
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "edges kept"
    local = first.model_copy(update={"scope": "local"})
    assert local.plot(of).get_xlabel() == "edges kept per token"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"{record.method}, {record.ranking}" for record in (first, second)
    ]
    with pytest.raises(UserError, match="curve 'area'"):
        first.plot("area")
    plt.close("all")


def test_records_are_short_when_they_are_shown_and_tables_when_they_are_compared(finished_run: Path):
    results = ss.load_run(finished_run).results
    record = results.records[0]
    assert len(repr(record)) < 200
    assert repr(record).startswith(f"Record({record.block}, {record.method}, {record.ranking}: 80 % faithfulness")
    assert repr(record) == f"Record({record})"
    assert repr(results).startswith(f"Results({len(results.records)} records")
    assert repr(ss.Results()) == "Results(nothing yet)"
    for row, made in zip(results.table(), results.records, strict=True):
        assert (row["block"], row["method"], row["ranking"]) == (made.block, made.method, made.ranking)
        assert row["edges_at_90"] == made.edges_at["90"]
        assert row["faithful_at_80"] == made.faithful_at["80"]
        assert (row["faithful_at_80_low"], row["faithful_at_80_high"]) == (made.ci["faithful_at.80"] or (None, None))
        assert row["floor_kl"] == made.floor.kl
