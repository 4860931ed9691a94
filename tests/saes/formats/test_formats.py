"""Formats without a package to write them: files as their authors write them, against a few lines of NumPy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from scalar_sae.digests import digest_of_sae
from scalar_sae.saes.export import export
from scalar_sae.saes.store import find_saes, load_saes
from scalar_sae.sites import Site
from tests.saes.formats.test_peer_files import decoded

D, F, K = 6, 16, 3
X = 2 * np.random.default_rng(3).standard_normal((10, D)) + 0.4
Arrays = dict[str, np.ndarray]
Reading = tuple[np.ndarray, np.ndarray]


def relu(u: np.ndarray) -> np.ndarray:
    return np.maximum(u, 0)


def topk(u: np.ndarray) -> np.ndarray:
    return np.where(u >= np.sort(u, -1)[:, -K][:, None], relu(u), 0)


class Weights:
    """Random weights that survive a round trip through a file's dtype."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        return (0.5 * torch.randn(shape, generator=self.generator)).to(self.dtype)


def arrays(tensors: dict[str, Any]) -> Arrays:
    return {name: t.double().numpy() for name, t in tensors.items() if isinstance(t, torch.Tensor)}


def standard(w: Weights) -> dict[str, torch.Tensor]:
    return {"W_enc": w(D, F), "b_enc": w(F), "W_dec": w(F, D), "b_dec": w(D)}


def linear(w: Weights, bias: str = "decoder.bias") -> dict[str, torch.Tensor]:
    return {"encoder.weight": w(F, D), "encoder.bias": w(F), "decoder.weight": w(D, F), bias: w(D)}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def saelens_before_6_topk(path: Path, w: Weights) -> Reading:
    """A TopK SAE calls itself standard; loading it as ReLU was a silent bug in SAELens (#553)."""
    t = {**standard(w), "scaling_factor": w(F).abs()}
    config = {"hook_point": "blocks.1.hook_resid_pre", "d_in": D, "d_sae": F, "activation_fn_str": "topk",
              "activation_fn_kwargs": {"k": K}, "normalize_activations": False,
              "finetuning_method": "scale"}  # fmt: skip
    write_json(path / "cfg.json", config)
    save_file(t, path / "sae_weights.safetensors")
    a = arrays(t)
    acts = topk((X - a["b_dec"]) @ a["W_enc"] + a["b_enc"])
    return acts, acts * a["scaling_factor"] @ a["W_dec"] + a["b_dec"]


def llama_scope_2024(path: Path, w: Weights) -> Reading:
    t = linear(w)
    config = {"hook_point_in": "blocks.1.hook_resid_post", "hook_point_out": "blocks.1.hook_resid_post", "d_model": D,
              "d_sae": F, "act_fn": "topk", "top_k": K, "jump_relu_threshold": 0.8, "norm_activation": "dataset-wise",
              "dataset_average_activation_norm": {"in": 3.5, "out": 3.5}, "sparsity_include_decoder_norm": True,
              "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False}  # fmt: skip
    write_json(path / "hyperparams.json", config)
    (path / "checkpoints").mkdir()
    save_file(t, path / "checkpoints" / "final.safetensors")
    a = arrays(t)
    s, n = D**0.5 / 3.5, np.linalg.norm(a["decoder.weight"], axis=0)
    u = (X @ a["encoder.weight"].T + a["encoder.bias"] / s) * n
    acts = u * (u > 0.8)
    return acts, acts @ (a["decoder.weight"] / n).T + a["decoder.bias"] / s


def llama_scope_transcoder(path: Path, w: Weights) -> Reading:
    """Input and output have norms of their own; the threshold is in units of what a latent adds to the output."""
    t = linear(w)
    config = {"hook_point_in": "blocks.1.ln2.hook_normalized", "hook_point_out": "blocks.1.hook_mlp_out", "d_model": D,
              "d_sae": F, "act_fn": "topk", "top_k": K, "jump_relu_threshold": 0.4, "norm_activation": "dataset-wise",
              "dataset_average_activation_norm": {"in": 3.5, "out": 1.2}, "sparsity_include_decoder_norm": True,
              "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False}  # fmt: skip
    write_json(path / "hyperparams.json", config)
    (path / "checkpoints").mkdir()
    torch.save({"sae": t}, path / "checkpoints" / "pruned.pt")
    a = arrays(t)
    s_in, s_out = D**0.5 / 3.5, D**0.5 / 1.2
    W_dec = a["decoder.weight"].T * s_in / s_out
    u = (X @ a["encoder.weight"].T + a["encoder.bias"] / s_in) * np.linalg.norm(W_dec, axis=1)
    acts = u * (u > 0.4)
    return acts, acts @ (W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)) + a["decoder.bias"] / s_out


def llama_scope_per_token(path: Path, w: Weights) -> Reading:
    """TopK without a threshold, no decoder bias, every token scaled to the norm sqrt(d)."""
    t = linear(w)
    del t["decoder.bias"]
    config = {"hook_point_in": "blocks.1.hook_attn_out", "hook_point_out": "blocks.1.hook_attn_out", "d_model": D,
              "d_sae": F, "act_fn": "topk", "top_k": K, "jump_relu_threshold": 0, "norm_activation": "token-wise",
              "sparsity_include_decoder_norm": False, "use_decoder_bias": False}  # fmt: skip
    write_json(path / "hyperparams.json", config)
    save_file(t, path / "sae_weights.safetensors")
    a = arrays(t)
    s = D**0.5 / np.linalg.norm(X, axis=1, keepdims=True)
    acts = topk(s * X @ a["encoder.weight"].T + a["encoder.bias"])
    return acts, acts @ a["decoder.weight"].T / s


def llama_scope_relu(path: Path, w: Weights) -> Reading:
    """A bias before the encoder, as the authors' option has it, is the decoder's."""
    t = linear(w)
    config = {"hook_point_in": "blocks.1.hook_resid_mid", "hook_point_out": "blocks.1.hook_resid_mid", "d_model": D,
              "act_fn": "relu", "norm_activation": "none", "apply_decoder_bias_to_pre_encoder": True}  # fmt: skip
    write_json(path / "hyperparams.json", config)
    save_file(t, path / "sae_weights.safetensors")
    a = arrays(t)
    acts = relu((X - a["decoder.bias"]) @ a["encoder.weight"].T + a["encoder.bias"])
    return acts, acts @ a["decoder.weight"].T + a["decoder.bias"]


def llama_scope_r1(path: Path, w: Weights) -> Reading:
    t = {**linear(w), "log_jumprelu_threshold": w(F)}
    config = {"sae_type": "sae", "hook_point_in": "blocks.1.hook_resid_post", "d_model": D, "act_fn": "jumprelu",
              "hook_point_out": "blocks.1.hook_resid_post", "norm_activation": "none"}  # fmt: skip
    write_json(path / "config.json", config)
    save_file(t, path / "sae_weights.safetensors")
    a = arrays(t)
    u = X @ a["encoder.weight"].T + a["encoder.bias"]
    acts = relu(u) * (u > np.exp(a["log_jumprelu_threshold"]))
    return acts, acts @ a["decoder.weight"].T + a["decoder.bias"]


def llamascopium(path: Path, w: Weights) -> Reading:
    """Weights, and thresholds on activation times decoder norm, in the space of normalised activations."""
    hook = "blocks.1.hook_mlp_out"
    t = {"W_E": w(D, F), "b_E": w(F), "W_D": w(F, D), "b_D": w(D)}
    t["activation_function.log_jumprelu_threshold"] = w(F)
    t[f"dataset_average_activation_norm.{hook}"] = torch.tensor(3.5)
    config = {"sae_type": "sae", "hook_point_in": hook, "hook_point_out": hook, "d_model": D, "act_fn": "jumprelu",
              "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True}  # fmt: skip
    write_json(path / "config.json", config)
    save_file(t, path / "sae_weights.safetensors")
    a = arrays(t)
    s, n = D**0.5 / 3.5, np.linalg.norm(a["W_D"], axis=1)
    h = s * X @ a["W_E"] + a["b_E"]
    h = relu(h) * (h * n > np.exp(a["activation_function.log_jumprelu_threshold"]))
    return h * n / s, (h @ a["W_D"] + a["b_D"]) / s  # activations: what a latent adds, in the model's units


def gemma_scope_1(path: Path, w: Weights, kind: str = "res") -> Reading:
    a = arrays({**standard(w), "threshold": w(F).abs()})
    folder = path / f"gemma-scope-2b-pt-{kind}" / "layer_1" / "width_16" / "average_l0_3"
    folder.mkdir(parents=True)
    kept: dict[str, Any] = {name: array.astype(np.float32) for name, array in a.items()}
    np.savez(folder / "params.npz", **kept)
    u = X @ a["W_enc"] + a["b_enc"]
    acts = relu(u) * (u > a["threshold"])
    return acts, acts @ a["W_dec"] + a["b_dec"]


def gemma_scope_1_transcoder(path: Path, w: Weights) -> Reading:
    return gemma_scope_1(path, w, "transcoders")


def gemma_scope_1_mlp(path: Path, w: Weights) -> Reading:
    return gemma_scope_1(path, w, "mlp")


def gemma_scope_2_skip_transcoder(path: Path, w: Weights) -> Reading:
    t = {"w_enc": w(D, F), "b_enc": w(F), "w_dec": w(F, D), "b_dec": w(D), "threshold": w(F).abs()}
    t["affine_skip_connection"] = w(D, D)
    layer = "model.layers.1"
    config = {
        "architecture": "jump_relu", "hf_hook_point_in": f"{layer}.pre_feedforward_layernorm.output",
        "hf_hook_point_out": f"{layer}.post_feedforward_layernorm.output", "affine_connection": True,
    }  # fmt: skip
    write_json(path / "config.json", config)
    save_file(t, path / "params.safetensors")
    a = arrays(t)
    u = X @ a["w_enc"] + a["b_enc"]
    acts = relu(u) * (u > a["threshold"])
    return acts, acts @ a["w_dec"] + a["b_dec"] + X @ a["affine_skip_connection"]


def openai(path: Path, w: Weights) -> Reading:
    folder = path / "resid_post_attn_v5_32k" / "autoencoders"
    folder.mkdir(parents=True)
    t = {"pre_bias": w(D), "encoder.weight": w(F, D), "latent_bias": w(F), "decoder.weight": w(D, F)}
    state = {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}, "stats_last_nonzero": w(F)}
    torch.save({**t, **state}, folder / "1.pt")
    a = arrays(t)
    mean, std = X.mean(-1, keepdims=True), X.std(-1, ddof=1, keepdims=True)
    acts = topk(((X - mean) / (std + 1e-5) - a["pre_bias"]) @ a["encoder.weight"].T + a["latent_bias"])
    return acts, (acts @ a["decoder.weight"].T + a["pre_bias"]) * std + mean


def openai_relu(path: Path, w: Weights) -> Reading:
    """The ReLU checkpoints do not normalise; a tied one stores no decoder."""
    folder = path / "resid_delta_mlp" / "autoencoders"
    folder.mkdir(parents=True)
    t = {"pre_bias": w(D), "encoder.weight": w(F, D), "latent_bias": w(F)}
    torch.save({**t, "activation": "ReLU"}, folder / "1.pt")
    a = arrays(t)
    acts = relu((X - a["pre_bias"]) @ a["encoder.weight"].T + a["latent_bias"])
    return acts, acts @ a["encoder.weight"] + a["pre_bias"]


def circuit_tracer_topk(path: Path, w: Weights) -> Reading:
    t = {"W_enc": w(F, D), "b_enc": w(F), "W_dec": w(F, D), "b_dec": w(D)}
    path.mkdir(parents=True)
    save_file({**t, "k": torch.tensor(K)}, path / "layer_1.safetensors")
    config = {"model_kind": "transcoder_set", "k": K, "feature_input_hook": "mlp.hook_in",
              "feature_output_hook": "mlp.hook_out"}  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    a = arrays(t)
    acts = topk(X @ a["W_enc"].T + a["b_enc"])
    return acts, acts @ a["W_dec"] + a["b_dec"]


def circuit_tracer_relu(path: Path, w: Weights) -> Reading:
    t = {"W_enc": w(F, D), "b_enc": w(F), "W_dec": w(F, D), "b_dec": w(D)}
    path.mkdir(parents=True)
    save_file(t, path / "layer_1.safetensors")
    config = {"model_kind": "transcoder_set", "feature_input_hook": "hook_resid_mid",
              "feature_output_hook": "hook_mlp_out"}  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    a = arrays(t)
    acts = relu(X @ a["W_enc"].T + a["b_enc"])
    return acts, acts @ a["W_dec"] + a["b_dec"]


def circuit_tracer(path: Path, w: Weights) -> Reading:
    t = {"W_enc": w(F, D), "b_enc": w(F), "W_dec": w(F, D), "b_dec": w(D), "W_skip": w(D, D)}
    t["activation_function.threshold"] = w(F).abs()
    path.mkdir(parents=True)
    save_file(t, path / "layer_1.safetensors")
    config = {"model_kind": "transcoder_set", "model_name": "m", "feature_input_hook": "hook_resid_mid",
              "feature_output_hook": "hook_mlp_out"}  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    a = arrays(t)
    u = X @ a["W_enc"].T + a["b_enc"]
    acts = relu(u) * (u > a["activation_function.threshold"])
    return acts, acts @ a["W_dec"] + a["b_dec"] + X @ a["W_skip"].T


def batch_topk(path: Path, w: Weights) -> Reading:
    t = standard(w)
    config = {"sae_type": "batchtopk", "top_k": K, "act_size": D, "dict_size": F, "input_unit_norm": True,
              "hook_point": "blocks.1.hook_resid_pre", "dtype": "torch.float32"}  # fmt: skip
    write_json(path / "config.json", config)
    torch.save(t, path / "sae.pt")
    a = arrays(t)
    mean, std = X.mean(-1, keepdims=True), X.std(-1, ddof=1, keepdims=True)
    acts = topk(((X - mean) / (std + 1e-5) - a["b_dec"]) @ a["W_enc"])
    return acts, (acts @ a["W_dec"] + a["b_dec"]) * std + mean


def batch_topk_vanilla(path: Path, w: Weights) -> Reading:
    t = standard(w)
    config = {"sae_type": "vanilla", "act_size": D, "dict_size": F, "hook_point": "blocks.1.hook_resid_pre"}
    write_json(path / "config.json", config)
    torch.save(t, path / "sae.pt")
    a = arrays(t)
    acts = relu((X - a["b_dec"]) @ a["W_enc"] + a["b_enc"])
    return acts, acts @ a["W_dec"] + a["b_dec"]


def batch_topk_jumprelu(path: Path, w: Weights) -> Reading:
    t = {**standard(w), "jumprelu.log_threshold": w(F)}
    config = {"sae_type": "jumprelu", "act_size": D, "dict_size": F, "hook_point": "blocks.1.hook_resid_pre"}
    write_json(path / "config.json", config)
    torch.save(t, path / "sae.pt")
    a = arrays(t)
    u = relu(X @ a["W_enc"] + a["b_enc"])  # their forward pass subtracts b_dec in all kinds but this one
    acts = u * (u > np.exp(a["jumprelu.log_threshold"]))
    return acts, acts @ a["W_dec"] + a["b_dec"]


def dictionary_learning_killed(path: Path, w: Weights) -> Reading:
    """A run killed after a backup leaves its training state, in units of activations over norm_factor."""
    t = {**linear(w, "b_dec"), "k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.3)}
    path.mkdir(parents=True)
    torch.save({"step": 7, "ae": t, "optimizer": {}, "config": {}, "norm_factor": 2.5}, path / "ae.pt")
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": D, "dict_size": F, "k": K, "layer": 1}
    write_json(path / "config.json", {"trainer": trainer, "buffer": {}})
    a = arrays(t)
    u = relu((X / 2.5 - a["b_dec"]) @ a["encoder.weight"].T + a["encoder.bias"])
    acts = u * (u > a["threshold"])
    return acts * 2.5, (acts @ a["decoder.weight"].T + a["b_dec"]) * 2.5


FORMATS: dict[str, tuple[Callable[[Path, Weights], Reading], str, str]] = {
    "SAELens before 6": (saelens_before_6_topk, "resid_pre.1", ""),
    "Llama Scope 2024": (llama_scope_2024, "resid_post.1", ""),
    "Llama Scope transcoder": (llama_scope_transcoder, "mlp_in.1", "mlp_out.1"),
    "Llama Scope per token": (llama_scope_per_token, "attn_out.1", ""),
    "Llama Scope ReLU": (llama_scope_relu, "resid_mid.1", ""),
    "Llama Scope R1": (llama_scope_r1, "resid_post.1", ""),
    "Llamascopium": (llamascopium, "mlp_out.1", ""),
    "Gemma Scope 1": (gemma_scope_1, "resid_post.1", ""),
    "Gemma Scope 1 transcoder": (gemma_scope_1_transcoder, "mlp_in.1", "mlp_out.1"),
    "Gemma Scope 1 MLP": (gemma_scope_1_mlp, "mlp_out.1", ""),
    "Gemma Scope 2": (gemma_scope_2_skip_transcoder, "mlp_in.1", "mlp_out.1"),
    "OpenAI": (openai, "resid_mid.1", ""),
    "OpenAI ReLU": (openai_relu, "mlp_out.1", ""),
    "circuit-tracer TopK": (circuit_tracer_topk, "mlp_in.1", "mlp_out.1"),
    "circuit-tracer ReLU": (circuit_tracer_relu, "resid_mid.1", "mlp_out.1"),
    "circuit-tracer": (circuit_tracer, "resid_mid.1", "mlp_out.1"),
    "BatchTopK": (batch_topk, "resid_pre.1", ""),
    "BatchTopK vanilla": (batch_topk_vanilla, "resid_pre.1", ""),
    "BatchTopK JumpReLU": (batch_topk_jumprelu, "resid_pre.1", ""),
    "dictionary_learning, killed": (dictionary_learning_killed, "resid_post.1", ""),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FORMATS)
def test_encode_and_decode(name: str, dtype: torch.dtype, tmp_path: Path):
    write, reads, writes = FORMATS[name]
    acts, x_hat = write(tmp_path / "saes", Weights(dtype))
    assert (acts > 0).any()
    assert (acts == 0).any()
    ((_, group),) = load_saes(tmp_path).items()
    ((site, sae),) = group.items()
    x = torch.from_numpy(X).float()
    mine = sae.encode(x)
    np.testing.assert_allclose(mine.numpy(), acts, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(decoded(sae, mine, x).numpy(), x_hat, atol=1e-4, rtol=1e-4)
    assert (str(site), "" if sae.writes is None else str(sae.writes)) == (reads, writes)
    assert sae.W_enc.dtype == torch.float32
    export(list(find_saes(tmp_path)), "scalar", tmp_path / "ours")
    ((_, again),) = load_saes(tmp_path / "ours").items()
    back = again[site]
    assert digest_of_sae(back) == digest_of_sae(sae)
    torch.testing.assert_close(back.encode(x), mine)  # not the bits: they may lie otherwise in memory
    torch.testing.assert_close(decoded(back, mine, x), decoded(sae, mine, x))
    assert (str(back.activation), back.writes, back.norm) == (str(sae.activation), sae.writes, sae.norm)


def gpt_circuits_case(path: Path, w: Weights, variant: str, by_key: bool) -> list[Reading]:
    """Two SAEs of a variant, with either habit of naming files."""
    key = ["0_residmid", "0_residpost"] if variant.endswith("_block") else ["0_act", "1_act"]
    widths = [F, 2 * F] if "staircase" in variant else [F, F]
    config = {"n_features": widths, "sae_variant": variant, "top_k": [K, K]} | ({"sae_keys": key} if by_key else {})
    write_json(path / "sae.json", config)
    shared = {"W_enc": w(D, 2 * F), "W_dec": w(2 * F, D)}
    if variant.endswith("staircase_detach") or variant == "topk_staircase":
        save_file(shared, path / ("sae.shared.safetensors" if by_key else "sae.shared.0.safetensors"))
    elif variant == "staircase_block":
        save_file(shared, path / "sae.shared.0.safetensors")
    readings: list[Reading] = []
    for i, width in enumerate(widths):
        t = {"b_enc": w(width), "b_dec": w(D)}
        if "staircase" not in variant:
            t |= {"W_enc": w(D, F), "W_dec": w(F, D)}
        if variant == "jumprelu_staircase":
            t |= {f"shared_context.{name}": tensor for name, tensor in shared.items()}
        if variant.startswith("jumprelu"):
            t["jumprelu.log_threshold"] = w(width)
        if variant == "standard_v2":
            del t["W_enc"]
        if variant.startswith("gated"):
            t = {"W_dec": t["W_dec"], "b_dec": t["b_dec"], "b_gate": w(F), "b_mag": w(F)}
            t |= {} if variant == "gated_v2" else {"W_gate": w(D, F), "r_mag": w(F)}
        save_file(t, path / f"sae.{key[i] if by_key else i}.safetensors")
        readings.append(gpt_circuits_reading(variant, arrays({**shared, **t}), width))
    return readings


def gpt_circuits_reading(variant: str, a: Arrays, width: int) -> Reading:
    W_dec, x = a["W_dec"][:width], X - a["b_dec"]
    if variant.startswith("gated"):
        W_gate, r_mag = a.get("W_gate", W_dec.T), a.get("r_mag", np.zeros(width))
        acts = (x @ W_gate + a["b_gate"] > 0) * relu(x @ (W_gate * np.exp(r_mag)) + a["b_mag"])
    else:
        W_enc = W_dec.T if variant == "standard_v2" else a["W_enc"][:, :width]
        u = relu(x @ W_enc + a["b_enc"])
        if variant.startswith("jumprelu"):
            acts = u * (u > np.exp(a["jumprelu.log_threshold"]))
        else:
            acts = u if variant.startswith("standard") else topk(u)
    return acts, acts @ W_dec + a["b_dec"]


@pytest.mark.parametrize("by_key", [False, True], ids=["by position", "by key"])
@pytest.mark.parametrize(
    "variant",
    ["standard", "standard_v2", "gated", "gated_v2", "jumprelu", "jumprelu_staircase", "topk", "topk_staircase",
     "topk_staircase_detach", "jsae_block", "staircase_block"],
)  # fmt: skip
def test_gpt_circuits_variants(variant: str, by_key: bool, tmp_path: Path):
    readings = gpt_circuits_case(tmp_path, Weights(torch.float32), variant, by_key)
    saes = load_saes(tmp_path)[variant]
    sites = ["resid_mid.0", "resid_post.0"] if variant.endswith("_block") else ["resid_pre.0", "resid_post.0"]
    assert [str(site) for site in saes] == sites
    for sae, (acts, x_hat) in zip(saes.values(), readings, strict=True):
        mine = sae.encode(torch.from_numpy(X).float())
        np.testing.assert_allclose(mine.numpy(), acts, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(sae.decode(mine).numpy(), x_hat, atol=1e-4, rtol=1e-4)
    assert [sae.chunks for sae in saes.values()] == ([(F,), (F, 2 * F)] if "staircase" in variant else [(), ()])


def jacobian_pair(path: Path, w: Weights) -> dict[str, dict[str, torch.Tensor]]:
    ends = {"": standard(w), "_out": standard(w)}
    t = {f"_{name}{end}": tensor for end, tensors in ends.items() for name, tensor in tensors.items()}
    config = {"is_pair": True, "hook_name": "blocks.1.ln2.hook_normalized", "d_in": D, "d_sae": F,
              "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}  # fmt: skip
    write_json(path / "cfg.json", config)
    save_file(t, path / "sae_weights.safetensors")
    return ends


def test_a_jacobian_pair(tmp_path: Path):
    ends = jacobian_pair(tmp_path, Weights(torch.float32))
    saes = load_saes(tmp_path)["jacobian"]
    for site, tensors in zip((Site("mlp_in", 1), Site("mlp_out", 1)), ends.values(), strict=True):
        a = arrays(tensors)
        acts = topk((X - a["b_dec"]) @ a["W_enc"] + a["b_enc"])
        mine = saes[site].encode(torch.from_numpy(X).float())
        np.testing.assert_allclose(mine.numpy(), acts, atol=1e-4)
        np.testing.assert_allclose(saes[site].decode(mine).numpy(), acts @ a["W_dec"] + a["b_dec"], atol=1e-4)


def test_embedding_saes_of_gemma_scope_read_the_scaled_embedding(tmp_path: Path):
    _, x_hat = gemma_scope_1(tmp_path, Weights(torch.float32))
    (file,) = tmp_path.rglob("params.npz")
    folder = tmp_path / "embedding" / "width_16"
    folder.mkdir(parents=True)
    file.rename(folder / "params.npz")
    ((found, _, _),) = find_saes(folder)
    x = torch.from_numpy(X * D**0.5).float()
    np.testing.assert_allclose(found.sae.decode(found.sae.encode(x)), x_hat * D**0.5, atol=1e-4)
    assert found.reads == "resid_pre.0"
