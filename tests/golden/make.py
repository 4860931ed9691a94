"""Make the checked-in golden files from the whole set: `python -m tests.golden.make [folder of the whole set]`."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
WHOLE = Path(__file__).resolve().parents[3] / "shared" / "golden"
PAIRS = {
    "topk.mlpblock.L0": ("0_residmid", "0_residpost"),
    "topk.mlplayer.L0": ("0_mlpin", "0_mlpout"),
    "topk.tblock.L1": ("1_act", "2_act"),
}
"""One pair of SAEs for each kind of block."""
PROMPTS, POSITIONS = 2, slice(15, None, 32)
COUNTS = [32, 512, 4095]
"""Edge counts of the sub-circuits that are kept, beside the count of all edges."""
COLUMNS = slice(None, None, 32)
"""Downstream latents whose attributions are kept."""
ROWS = slice(None, None, 16)
"""Latents whose gradients of the Jacobian loss are kept."""

Tensors = dict[str, torch.Tensor]


def compact(whole: Path) -> dict[str, Tensors]:
    """The tensors of every checked-in file; the file names are those of the whole set."""
    acts = {
        name: x[:PROMPTS, POSITIONS].clone() for name, x in load_file(whole / "acts.safetensors").items()
    }  # fmt: skip
    files = {
        "gpt": load_file(whole / "gpt.safetensors"),
        "prompts": load_file(whole / "prompts.safetensors"),
        "acts": acts,
        "jacobian": jacobian(whole),
    }
    for pair, keys in PAIRS.items():
        variant = pair.rpartition(".")[0]
        saes = load_file(whole / f"sae_{variant}.safetensors")
        files[f"sae_{variant}"] = {name: x for name, x in saes.items() if name.startswith(keys)}
        attribution = load_file(whole / f"attr_{pair}.safetensors")
        files[f"attr_{pair}"] = {
            "columns": torch.arange(attribution["attr"].shape[1])[COLUMNS].int(),
            "attr": attribution["attr"][:, COLUMNS].clone(),
            "order": order(attribution)[: COUNTS[-1]].int(),
        }
        files[f"sweep_{pair}.a"] = sweep(load_file(whole / f"sweep_{pair}.a.safetensors"))
    magnitudes = load_file(whole / "fm_topk.mlpblock.safetensors")
    keys = PAIRS["topk.mlpblock.L0"]
    files["fm_topk.mlpblock"] = {n: x[:PROMPTS].clone() for n, x in magnitudes.items() if n.startswith(keys)}
    return files


def numbers(whole: Path) -> dict[str, dict[str, float]]:
    """The scalars of index.json that tests compare with."""
    index = json.loads((whole / "index.json").read_text())
    losses = {v: c["jacobian_loss_per_layer"] for v, c in index["jacobian_golden"].items()}
    error = index["sae_metrics_20_prompts_fp32"]["topk.mlpblock"]["0_residmid"]["recon_sq_sum"]
    return {
        "jacobian_loss_of_layer_0": {variant: losses[variant][0] for variant in ("topk.mlpblock", "topk.mlplayer")},
        "squared_error_on_20_prompts": {"topk.mlpblock.0_residmid": error},
    }


def order(attribution: Tensors) -> torch.Tensor:
    """Flat indices of edges in the authors' order: descending attribution, exact ties and zeros as recorded."""
    flat = attribution["attr"].flatten()
    first = flat.argsort(descending=True, stable=True)[: int((flat > 0).sum())]
    first[attribution["order_diff_pos"].long()] = attribution["order_diff_idx"].long()
    return torch.cat([first, attribution.get("order_zero_tail", torch.zeros(0)).long()])


def sweep(t: Tensors) -> Tensors:
    """The chosen counts and the count of all edges, which is the last."""
    counts = t["edge_counts"].tolist()
    partial = [counts.index(count) for count in COUNTS]
    kept = {name: t[name][[*partial, -1]].clone() for name in ("edge_counts", "kl", "kl_full_model")}
    kept |= {name: t[name][partial].clone() for name in ("down_idx", "down_val")}
    full = [f"{circuit}.{part}" for circuit in ("down_full", "down_consistent") for part in ("idx", "val")]
    return kept | {name: t[name] for name in ("prompt_ids", *full)}


def jacobian(whole: Path) -> Tensors:
    """Gradients of the upstream decoder and the downstream encoder in layer 0, for every 16th latent."""
    t = load_file(whole / "jacobian.safetensors")
    kept = {n: x[ROWS] if "W_dec" in n else x[:, ROWS] for n, x in t.items() if n.startswith("topk.")}
    return {name: x.clone() for name, x in kept.items()}


def main() -> None:
    whole = Path(sys.argv[1]) if len(sys.argv) > 1 else WHOLE
    for name, tensors in compact(whole).items():
        save_file(tensors, HERE / f"{name}.safetensors")
    (HERE / "index.json").write_text(json.dumps(numbers(whole), indent=1) + "\n")


if __name__ == "__main__":
    main()
