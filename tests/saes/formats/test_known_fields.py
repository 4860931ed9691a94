"""Fields that the libraries write in one version or another, beside those of the samples, and where SAEs lie."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scalar_sae.errors import UserError
from scalar_sae.saes.store import find_saes, load_saes
from tests.saes.formats.test_formats import FORMATS, Weights, gemma_scope_1, jacobian_pair, openai
from tests.saes.formats.test_mutations import Tampering

TRAINER = {
    "trainer_class": "BatchTopKTrainer", "lr": 5e-5, "steps": 244140, "auxk_alpha": 0.03125, "warmup_steps": 1000,
    "decay_start": 195312, "threshold_beta": 0.999, "threshold_start_step": 1000, "top_k_aux": 256, "seed": 0,
    "device": "cuda:0", "lm_name": "EleutherAI/pythia-160m-deduped", "wandb_name": "BatchTopKTrainer-x",
    "submodule_name": "resid_post_layer_1", "sparsity_warmup_steps": 5000, "l1_penalty": 0.06, "resample_steps": None,
    "sparsity_function": "Lp^p", "sparsity_penalty": 0.025, "p_start": 1, "p_end": 0.2, "anneal_start": 10000,
    "sparsity_queue_length": 10, "n_sparsity_updates": 10, "bandwidth": 0.001, "target_l0": 80,
    "lambda_warm_steps": 1500,
}  # fmt: skip
BUFFER = {
    "d_submodule": 6, "io": "out", "n_ctxs": 244, "ctx_len": 1024, "refresh_batch_size": 32, "out_batch_size": 2048,
    "device": "cuda:0",
}  # fmt: skip
OPENMOSS = {
    "expansion_factor": 8, "device": "cuda", "seed": 42, "dtype": "torch.bfloat16", "from_pretrained_path": None,
    "use_decoder_bias": True, "decoder_bias_init_method": "all_zero", "geometric_median_max_iter": 1000,
    "bias_init_method": "all_zero", "decoder_exactly_fixed_norm": False, "use_glu_encoder": False, "l1_coefficient": 0,
    "l1_coefficient_warmup_steps": 0, "lp": 1, "init_decoder_norm": 0.5, "init_encoder_norm": None,
    "init_encoder_with_decoder_transpose": True, "use_ghost_grads": False, "k_warmup_steps": 39062,
    "use_batch_norm_mse": True, "tp_size": 1, "ddp_size": 1, "strict_loading": True, "initial_k": 2048,
    "sae_pretrained_name_or_path": None,
}  # fmt: skip
LLAMASCOPIUM = {
    "expansion_factor": 2.5, "use_decoder_bias": True, "use_glu_encoder": False, "top_k": 50,
    "use_triton_kernel": False, "sparsity_threshold_for_triton_spmm_kernel": 0.996, "jumprelu_threshold_window": 2.0,
}  # fmt: skip
BATCH_TOPK = {
    "seed": 49, "batch_size": 4096, "lr": 0.0003, "num_tokens": 1000000000, "l1_coeff": 0, "beta1": 0.9, "beta2": 0.99,
    "max_grad_norm": 100000, "seq_len": 128, "model_name": "gpt2-small", "site": "resid_pre", "layer": 1,
    "device": "cuda:0", "model_batch_size": 512, "num_batches_in_buffer": 10, "dataset_path": "Skylion007/openwebtext",
    "wandb_project": "p", "perf_log_freq": 1000, "checkpoint_freq": 10000, "n_batches_to_dead": 5, "top_k_aux": 512,
    "aux_penalty": 0.03125, "bandwidth": 0.001, "name": "gpt2-small_blocks.1.hook_resid_pre_12288_topk_32_0.0003",
}  # fmt: skip
KNOWN: list[tuple[str, str, dict[str, Any]]] = [
    ("dictionary_learning, killed", "config.json", {"trainer": TRAINER, "buffer": BUFFER}),
    ("Llama Scope 2024", "hyperparams.json", OPENMOSS),
    ("Llamascopium", "config.json", LLAMASCOPIUM),
    ("BatchTopK", "config.json", BATCH_TOPK),
    (
        "BatchTopK vanilla",
        "config.json",
        {**BATCH_TOPK, "model_name": "gemma-2-2b", "top_k": 32, "input_unit_norm": False},
    ),
    ("Gemma Scope 2", "config.json", {"model_name": "gemma-3-1b-pt", "width": 16, "l0": 20, "type": "transcoder"}),
    ("circuit-tracer", "config.yaml", {"scan": "me/mine", "transcoders": ["hf://me/mine/layer_1.safetensors"]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "more"), KNOWN)
def test_fields_that_cannot_change_an_sae(name: str, file: str, more: dict[str, Any], tmp_path: Path):
    write, _, _ = FORMATS[name]
    sample = Tampering(tmp_path / "root", lambda path: write(path, Weights(torch.float32)))
    (config,) = tmp_path.rglob(file)
    load, dump = (yaml.safe_load, yaml.safe_dump) if config.suffix == ".yaml" else (json.loads, json.dumps)
    content = load(config.read_text())
    for key, value in more.items():
        content[key] = content.get(key, {}) | value if isinstance(value, dict) else value
    config.write_text(dump(content))
    sample.check("all that is known", [], "same")
    sample.finish()


def test_fields_of_jacobian_saes(tmp_path: Path):
    sample = Tampering(tmp_path / "root", lambda path: jacobian_pair(path, Weights(torch.float32)))
    (config,) = tmp_path.rglob("cfg.json")
    more = {"sparsity_metric": "l1", "randomize_llm_weights": False, "use_jacobian_loss": True, "seqpos_slice": [None],
            "jacobian_coefficient": 1.0, "mlp_out_mse_coefficient": 1.0, "normalize_jac_loss": False, "hook_layer": 1,
            "norm_jac_across_batch": False, "model_from_pretrained_kwargs": {"center_writing_weights": False},
            "architecture": "standard", "finetuning_scaling_factor": False}  # fmt: skip
    config.write_text(json.dumps(json.loads(config.read_text()) | more))
    sample.check("all that is known", [], "same")
    sample.finish()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"io": "in_and_out"}, "io = 'in_and_out': a transcoder"),
        ({"io": "in"}, "do not say where this SAE reads"),
        ({"io": "sideways"}, "io = 'sideways'"),
        ({"layer": 3}, "layer = 3 is not known"),  # the buffer of single attention heads
        ({"d_submodule": 7}, "d_submodule = 7, the tensors have 6"),
    ],
)
def test_buffers_of_dictionary_learning(more: dict[str, Any], message: str, tmp_path: Path):
    FORMATS["dictionary_learning, killed"][0](tmp_path / "saes", Weights(torch.float32))
    (config,) = tmp_path.rglob("config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"buffer": more}))
    with pytest.raises(UserError, match=message):
        load_saes(tmp_path)


@pytest.mark.parametrize(
    ("folder", "trainer", "site"),
    [
        ("trainer_0", {"submodule_name": "mlp_out_layer_4", "layer": 4}, "layers.4.mlp"),
        ("resid_post_layer_3/trainer_0", {"layer": 3}, "resid_post.3"),
        ("mlp_out_layer3/10_32768", {}, "layers.3.mlp"),
        ("attn_out_layer3/10_32768", {}, "layers.3.attention"),
        ("resid_post_layer_5_ablations/trainer_0", {"layer": 3}, "resid_post.3"),
        ("trainer_0", {"submodule_name": "attn_layer_3", "layer": 3}, ""),
    ],
)
def test_sites_of_dictionary_learning(folder: str, trainer: dict[str, Any], site: str, tmp_path: Path):
    """Names of the modules that it hooks: of the MLP of Gemma 2 that is before a norm, and `mlp_out` behind it."""
    FORMATS["dictionary_learning, killed"][0](tmp_path / "saes", Weights(torch.float32))
    target = tmp_path / "deep" / folder
    target.parent.mkdir(parents=True)
    shutil.move(tmp_path / "saes", target)
    content = json.loads((target / "config.json").read_text())
    del content["trainer"]["layer"]
    content["trainer"] |= trainer
    (target / "config.json").write_text(json.dumps(content))
    ((found, _, _),) = find_saes(tmp_path / "deep")
    assert found.reads == site


GEMMA = "gemma-scope-2b-pt-mlp/layer_20/width_16k/average_l0_71"


def gemma(folder: Path) -> Path:
    made = folder.with_name("made")
    gemma_scope_1(made, Weights(torch.float32))
    folder.mkdir(parents=True)
    shutil.move(next(made.rglob("params.npz")), folder)
    shutil.rmtree(made)
    return folder


@pytest.mark.parametrize(
    ("path", "site"),
    [
        (GEMMA, "mlp_out.20"),
        (f"layer_5_ablations/{GEMMA}", "mlp_out.20"),
        (f"gemma-scope-2b-results/{GEMMA}", "mlp_out.20"),
        (f"gemma-scope-9b-pt-res/layer_3/{GEMMA}", "mlp_out.20"),
        (f"embedding/{GEMMA}", "mlp_out.20"),
        ("gemma-scope-9b-it-res-canonical/layer_31/width_16k/canonical", "resid_post.31"),
        ("hub/models--google--gemma-scope-2b-pt-res/snapshots/0123/layer_7/width_16k/average_l0_71", "resid_post.7"),
        (f"models--me--gemma-scope-2b-pt-res/snapshots/0123/copies/{GEMMA}", "mlp_out.20"),
        ("gemma-scope-2b-results/layer_20/width_16k/average_l0_71", ""),
        ("gemma-scope-2b-pt-mlp/copies/layer_20/width_16k/average_l0_71", ""),
        ("gemma-scope-2b-pt-mlp/layer_20/ablations/width_16k/average_l0_71", ""),
        ("layer_20/width_16k/average_l0_71", ""),
    ],
)
def test_gemma_scope_s_site_stands_next_to_the_file(path: str, site: str, tmp_path: Path):
    folder = gemma(tmp_path / path)
    for named in (tmp_path, folder, folder / "params.npz"):
        ((found, _, _),) = find_saes(named)
        assert found.reads == site


def test_a_relative_path_or_a_link_lies_where_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = gemma(tmp_path / "layer_5" / GEMMA)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parents[1])
    for path in (".", "width_16k", "../layer_20/width_16k", str(tmp_path / "link")):
        ((found, _, _),) = find_saes(path)
        assert found.reads == "mlp_out.20"


@pytest.mark.parametrize(
    ("path", "site"),
    [
        ("resid_delta_mlp_v4/autoencoders", "mlp_out.1"),
        ("resid_post_mlp/resid_post_attn_v5_128k/autoencoders", "resid_mid.1"),
        ("resid_post_attn_results/autoencoders", ""),
        ("resid_post_attn/other/autoencoders", ""),
    ],
)
def test_openai_s_site_stands_next_to_the_file(path: str, site: str, tmp_path: Path):
    openai(tmp_path / "made", Weights(torch.float32))
    (tmp_path / path).parent.mkdir(parents=True)
    shutil.move(tmp_path / "made" / "resid_post_attn_v5_32k" / "autoencoders", tmp_path / path)
    ((found, _, _),) = find_saes(tmp_path / path)
    assert found.reads == site


def test_a_folder_that_fits_two_formats_is_refused(tmp_path: Path):
    jacobian_pair(tmp_path, Weights(torch.float32))
    gemma(tmp_path / "inside")
    (tmp_path / "inside" / "params.npz").rename(tmp_path / "params.npz")
    with pytest.raises(
        UserError, match=r"holds files of jacobian-saes .* and of Gemma Scope .*: which of them is meant"
    ):
        load_saes(tmp_path)
