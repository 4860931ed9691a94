"""scalar-sae: how sparsely do the features of neighbouring sparse autoencoders interact?

This file lists the public API; the modules document how it works. Start with docs/architecture.md. Names are imported
on first use, so that `scalar --help` does not wait for torch.
"""

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from scalar_sae._version import __version__

if TYPE_CHECKING:
    from scalar_sae.corpora import Corpus, load_corpus
    from scalar_sae.errors import UserError
    from scalar_sae.explore.circuit import Circuit, measure_chain
    from scalar_sae.explore.edges import RankedEdges, rank_edges
    from scalar_sae.explore.examples import edge_examples
    from scalar_sae.explore.explanations import explain_edge, explain_features
    from scalar_sae.explore.features import Features
    from scalar_sae.explore.groups import group_features
    from scalar_sae.explore.journey import Journey
    from scalar_sae.explore.plain import Intervention, interventions_from
    from scalar_sae.explore.run import Run, load_run
    from scalar_sae.lm.model import LanguageModel
    from scalar_sae.own_text import evaluation_text
    from scalar_sae.records.results import Record, Results
    from scalar_sae.saes.fitted import fitted
    from scalar_sae.saes.sae import SAE
    from scalar_sae.saes.store import load_sae, load_saes, save_sae
    from scalar_sae.scoring.ablation import mean_ablated
    from scalar_sae.scoring.config import ScoreConfig, held_out
    from scalar_sae.scoring.pair import Pair
    from scalar_sae.scoring.score import prepared, score
    from scalar_sae.sites import Block, Site
    from scalar_sae.table import Table

_HOME = {
    "SAE": "saes.sae",
    "Block": "sites",
    "Circuit": "explore.circuit",
    "Corpus": "corpora",
    "Features": "explore.features",
    "Intervention": "explore.plain",
    "Journey": "explore.journey",
    "LanguageModel": "lm.model",
    "Pair": "scoring.pair",
    "RankedEdges": "explore.edges",
    "Record": "records.results",
    "Results": "records.results",
    "Run": "explore.run",
    "ScoreConfig": "scoring.config",
    "Site": "sites",
    "Table": "table",
    "UserError": "errors",
    "edge_examples": "explore.examples",
    "evaluation_text": "own_text",
    "explain_edge": "explore.explanations",
    "explain_features": "explore.explanations",
    "fitted": "saes.fitted",
    "group_features": "explore.groups",
    "held_out": "scoring.config",
    "interventions_from": "explore.plain",
    "load_corpus": "corpora",
    "load_run": "explore.run",
    "load_sae": "saes.store",
    "load_saes": "saes.store",
    "mean_ablated": "scoring.ablation",
    "measure_chain": "explore.circuit",
    "prepared": "scoring.score",
    "rank_edges": "explore.edges",
    "save_sae": "saes.store",
    "score": "scoring.score",
}

__all__ = [
    "SAE",
    "Block",
    "Circuit",
    "Corpus",
    "Features",
    "Intervention",
    "Journey",
    "LanguageModel",
    "Pair",
    "RankedEdges",
    "Record",
    "Results",
    "Run",
    "ScoreConfig",
    "Site",
    "Table",
    "UserError",
    "__version__",
    "edge_examples",
    "evaluation_text",
    "explain_edge",
    "explain_features",
    "fitted",
    "group_features",
    "held_out",
    "interventions_from",
    "load_corpus",
    "load_run",
    "load_sae",
    "load_saes",
    "mean_ablated",
    "measure_chain",
    "prepared",
    "rank_edges",
    "save_sae",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'scalar_sae' has no attribute {name!r}")
    if "ipykernel" in sys.modules:  # in a notebook without ipywidgets, the bars of libraries are text, which is fine
        warnings.filterwarnings("ignore", message="IProgress not found")
    return getattr(import_module(f"scalar_sae.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
