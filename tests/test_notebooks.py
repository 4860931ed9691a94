"""The notebooks of the documentation: stored executed, small, and true when they are executed again."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
TRUE_AT_THE_END = {
    "first_score": [
        "record.edges_at['90'] < record.n_edges / 20 < control.edges_at['90']",
        "[row['edges'] for row in record.curve()] == record.edges",
        "curve['recovery'].iloc[0] == 0 and abs(curve['recovery'].iloc[-1] - 1) < 1e-3",
    ],
    "others_saes": [
        "record.curve() == own.curve()",
        "len(saes) == 2",
    ],
    "circuit_by_hand": [
        "full.n_edges - full.without(edges=[edge]).n_edges == 1",
        "best['10000 edges'].shape == best['model'].shape",
        "lm.logits(tokens).equal(best['model'])",
        "[row['p_other'] > row['p'] for row in full.logit_changes(full.without(up=[edge[0]]), prompt, n=128)"
        " if row['text'] == up.tokens(edge[0])[0]] == [True]",
    ],
}
"""What holds behind the last cell."""
LONG = """
import time
from scalar_sae.console import Bar
with Bar("count <b>", 25) as bar:
    for n in range(25):
        time.sleep(0.1)
        bar.step()
with Bar("count quickly", 2) as bar:
    bar.step()
"""
STOPPED = LONG.replace("time.sleep(0.1)", "1 / (20 - n); time.sleep(0.1)")
"""The same, stopped after 20 of 25 steps."""


class Watched(NotebookClient):
    """Keeps every state of a display that is redrawn, as HTML."""

    seen: list[str]

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.seen.append(msg["content"]["data"].get("text/html", ""))
        return super().process_message(msg, cell, cell_index)


def execute(notebook: Any, place: Path) -> list[str]:
    """Execute a notebook and return every state of its displays."""
    client = Watched(notebook, timeout=300, resources={"metadata": {"path": str(place)}}, kernel_name="python3")
    client.seen = []
    source = str(Path(__file__).parents[1] / "src")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    client.execute(env={**os.environ, "PYTHONPATH": source, "PATH": programs})
    return client.seen


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def results(notebook: Any) -> list[Any]:
    """Outputs without printed text, which may come in several pieces, and without bars, which a quick cell lacks."""
    shown = [output for output in outputs(notebook) if output.output_type != "stream"]
    return [output for output in shown if "<progress" not in output.data.get("text/html", "")]


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(TRUE_AT_THE_END)


@pytest.mark.parametrize("name", TRUE_AT_THE_END)
def test_a_notebook_is_stored_executed_and_small(name: str):
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 150_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    said = "".join(output.get("text", "") for output in outputs(notebook))
    assert "Warning" not in said
    assert "/work" not in path.read_text()


def test_the_notebooks_run_and_show_what_they_say(tmp_path: Path):
    """In one kernel, which forgets every name between two of them. The first one trains the SAEs of all."""
    notebooks = {name: nbformat.read(FOLDER / f"{name}.ipynb", 4) for name in TRUE_AT_THE_END}
    stored = {name: len(results(notebook)) for name, notebook in notebooks.items()}
    cells: list[Any] = []
    for name, notebook in notebooks.items():
        claims = [f"assert {claim}" for claim in TRUE_AT_THE_END[name]]
        cells += [*notebook.cells, *map(nbformat.v4.new_code_cell, [*claims, "%reset -f"])]
    execute(nbformat.v4.new_notebook(cells=cells), tmp_path)
    assert {name: len(results(notebook)) for name, notebook in notebooks.items()} == stored


def test_progress_in_a_notebook_is_one_bar_that_is_redrawn(tmp_path: Path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LONG), nbformat.v4.new_code_cell(STOPPED)])
    for cell in notebook.cells:
        cell.metadata["tags"] = ["raises-exception"]
    seen = execute(notebook, tmp_path)
    drawn = re.compile(r'<progress max="1" value="([\d.]+)" aria-label="count &lt;b&gt;"></progress> count &lt;b&gt;: ')
    bars = [drawn.match(html) for html in seen]
    values = [float(bar[1]) for bar in bars if bar]
    finished = values.index(1.0) + 1
    assert len(values) == len(seen)
    assert finished >= 2
    assert values[:finished] == sorted(set(values[:finished]))
    assert values[-1] == 0.8
    (done,), (stopped, error) = (cell.outputs for cell in notebook.cells)
    assert done.data["text/plain"].startswith("[####################] count <b>: done in")
    assert stopped.data["text/plain"].startswith("[################....] count <b>: stopped after")
    assert error.ename == "ZeroDivisionError"


@pytest.mark.parametrize("name", ["matplotlib.pyplot", "matplotlib"])
def test_without_matplotlib_a_plot_is_refused_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch):
    from scalar_sae import Table, UserError
    from scalar_sae.records.curve import draw

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'scalar-sae\[notebook\]'"):
        draw(Table([{"edges": 1, "recovery": 0.5}]), "recovery", "mine")
