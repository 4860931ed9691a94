"""Texts that try to run, to break out of where they stand, or to tear a page apart; tables and records full of them."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from scalar_sae.measures.tables import OCTAVES, write_table

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
        {"latent": latent, "kind": kind, "prompt": 0, "position": 3, "start": 0, "tokens": some,
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
