"""Texts that try to run, to break out of where they stand, or to tear a page apart; tables and records full of them."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from scalar_sae.evaluation.features.tables import OCTAVES, write_table
from scalar_sae.records.label_results import CrossedLabels, LabelProbe, ParentAbsorption, SaeAbsorption, SaeProbes
from scalar_sae.records.results import Results
from scalar_sae.records.sae_results import (
    Duplicates,
    FrequencyBin,
    JudgedBy,
    Mcc,
    MeanScore,
    SaeReading,
    SeedAgreement,
    SplicedFidelity,
)
from tests.report.test_page import fidelity, record

_RAN = "window.ran=1;document.title='ran'"
SCRIPTS = [
    f"<script>{_RAN}</script>", f"</script><script>{_RAN}</script>", f"</title><script>{_RAN}</script>",
    f"</pre></style></textarea><script>{_RAN}</script>", f"<img src=x onerror=\"{_RAN}\">",
    f"\"><svg onload=\"{_RAN}\">", f"' autofocus onfocus='{_RAN}", f"javascript:{_RAN}", f"`;{_RAN};`",
    f"\");{_RAN};(\"", f"\\\");{_RAN};//", f"${{{_RAN}}}",
    f"<iframe srcdoc=\"<script>parent.{_RAN}</script>\"></iframe>",
    f"<a href=\"javascript:{_RAN}\">link</a>", "<style>@import 'data:text/css,*{display:none}'</style>",
    f"<meta http-equiv=refresh content=\"0;url=javascript:{_RAN}\">", "<base href=\"//evil.example/\">",
    "<!--", "]]>", "--><script>", "{{ 7 * 7 }}", "{% raw %}", "%{x}", "%{customdata}<extra></extra>", "&lt;b&gt;&amp;",
    "<b>", "</table>", "<plaintext>", "__proto__", "constructor", "<script src=//evil.example/x.js></script>",
    f"\u2028{_RAN}\u2029", f"+ADw-script+AD4-{_RAN}+ADw-/script+AD4-",
]  # fmt: skip
TEARING = [
    "x" * 10_000, "<" * 10_000, "\u202e" * 10 + "reversed", "\u2066" * 50, "\x00", "".join(map(chr, range(32))),
    "\x1b[31mred", "\x7f\x80\x9f", "\ufeff\u200b\u200f", "a" + "\u0301\u0323\u20e3" * 300,
    "\U0001f3f4\U000e0067\U000e007f",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\ufdfd" * 40, "\n" * 50, "\t" * 50, "مرحبا بالعالم", "𒐫" * 100,
]  # fmt: skip
TEXTS = SCRIPTS + TEARING


def write_tables(folder: Path) -> None:
    """Feature tables of one SAE in which every token, site and name is hostile."""
    folder.mkdir(parents=True)
    n, n_tokens = 4, len(TEXTS)
    tokens = np.arange(n_tokens, dtype=np.int32)
    acts = np.linspace(0.1, 1, n_tokens, dtype=np.float32)
    write_table(pa.table({
        "latent": np.arange(n, dtype=np.int32), "density": np.full(n, 0.1), "maximum": np.ones(n, dtype=np.float32),
        "mean": np.ones(n, dtype=np.float32), "octaves": [[3] * len(OCTAVES)] * n, "rule_f1": [[0.5] * 3] * n,
        "rule_accuracy": [[0.5] * 3] * n, "rule_tokens": [tokens] * n, "promoted": [tokens] * n,
        "promoted_by": [acts] * n, "suppressed": [tokens] * n, "suppressed_by": [acts] * n,
    }), folder / "latents.parquet")  # fmt: skip
    rows = [
        {"latent": latent, "kind": kind, "prompt": 0, "position": 3, "start": 3, "tokens": some,
         "acts": acts[: len(some)]}
        for latent in range(n) for kind in ("top", "random", "band", "silent")
        for some in [tokens, *(tokens[i : i + 1] for i in range(0, n_tokens, 9))]
    ]  # fmt: skip
    write_table(pa.Table.from_pylist(rows), folder / "contexts.parquet")
    write_table(pa.table({"token": tokens, "text": TEXTS}), folder / "vocabulary.parquet")
    edges = [
        {"latent": latent, "side": side, "site": site, "other": 1, "score": 1.0}
        for latent in range(n) for side in ("up", "down") for site in ("resid_mid.0", "resid_post.12")
    ]  # fmt: skip
    write_table(pa.Table.from_pylist(edges), folder / "edges.parquet")


def results() -> Results:
    """One record of every kind for each text, in which every name is that text."""
    found = Results()
    mean = MeanScore(mean=0.5, ci=(0.4, 0.6), n=3, n_null=0)
    mcc = {"n_a": 8, "n_b": 8, "mcc": 0.5, "short": 0, "null": 0.1, "rescaled": 0.4, "max_cosine": 0.6,
           "max_cosine_null": 0.2, "max_cosine_rescaled": 0.5}  # fmt: skip
    bins = [FrequencyBin(low=0.01, high=0.1, n=4, mcc=0.5, null=0.1)]
    for number, text in enumerate(TEXTS):
        for ranking in ("leave_one_out_with_prior", "published", "random", "local"):
            one = record(TEXTS[number % 3], text, ranking, 512, 1000.0, 10.0)
            data = dict.fromkeys((*one.data, "seen"), text)
            found.records.append(one.model_copy(update={"data": data, "versions": {text: text}}))
        site = f"resid_mid.{number % 4}"
        found.saes.append(fidelity(text, site))
        found.spliced.append(SplicedFidelity(
            method=text, sites=[text], ce_increase=0.1, kl=0.1, ce_recovered={"zero": 0.9, "mean": None},
            kl_recovered={"zero": 0.9, "mean": 0.8}, n_tokens=10, n_prompts=2, ci={},
        ))  # fmt: skip
        found.seeds.append(SeedAgreement(
            method=text, site=text, runs=[text, text], pw_mcc=0.5, null=0.1, rescaled=0.4,
            pairs=[Mcc(absolute=False, **mcc, by_frequency=bins)],
            absolute_pairs=[Mcc(absolute=True, **mcc, by_frequency=bins)], threshold=0.7, same_partner=True, shared=0.5,
            shared_null=0.1, appearances=[4, 4], n_tokens=10,
        ))  # fmt: skip
        found.duplicates.append(Duplicates(
            method=text, first=site, later="resid_post.9", n=8, threshold=0.9, share=0.1, mean_nearest=0.3
        ))  # fmt: skip
        parent = ParentAbsorption(parent=text, child=text, probe_f1=0.9, fraction=0.1, full=0.0, main=[1, 2], n=10)
        found.absorption.append(SaeAbsorption(
            method=text, site=text, task=text, thresholds=text, share=0.4, cosine=0.1, most=3, fraction=0.1, full=0.0,
            parents=[parent], n_rows=10,
        ))  # fmt: skip
        found.probes.append(SaeProbes(
            method=text, site=text, task=text, labels=[LabelProbe(label=text, n=5, dense=0.9, sparse={1: 0.8})],
            tpp={1: 0.1}, scr=[CrossedLabels(wanted=text, spurious=text, scr={1: 0.1})], n_rows=10,
        ))  # fmt: skip
        judge = JudgedBy(judge={"model": text, "url": text}, detection=mean, fuzzing=mean)
        found.reading.append(SaeReading(method=text, site=text, rule_f1={1: mean}, judged=[judge]))
    return found
