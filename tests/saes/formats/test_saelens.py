"""What SAELens' configs say in their several versions: fine-tuned decoders, prepared models, origins, odd values."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from scalar_sae.errors import UserError
from scalar_sae.saes.export import export
from scalar_sae.saes.formats.files import Found
from scalar_sae.saes.store import find_saes, load_saes, notes
from scalar_sae.sites import Site
from tests.test_study import scalar

D, F = 6, 16
X = torch.randn(20, D, generator=torch.Generator().manual_seed(1)) + 0.4

V5: dict[str, Any] = {
    "architecture": "standard", "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "model_name": "gpt2-small",
    "hook_name": "blocks.3.hook_resid_pre", "hook_layer": 3, "hook_head_index": None, "activation_fn_str": "relu",
    "activation_fn_kwargs": {}, "apply_b_dec_to_input": True, "finetuning_scaling_factor": False,
    "sae_lens_training_version": "5.10.7", "prepend_bos": True, "dataset_path": "Skylion007/openwebtext",
    "dataset_trust_remote_code": True, "context_size": 128, "normalize_activations": "none", "neuronpedia_id": None,
    "model_from_pretrained_kwargs": {}, "seqpos_slice": [None],
}  # fmt: skip
"""An SAE's config as versions 4 and 5 write it."""

V2: dict[str, Any] = {
    "model_name": "gpt2-small", "model_class_name": "HookedTransformer", "hook_point": "blocks.3.hook_resid_pre",
    "hook_point_eval": "blocks.3.attn.pattern", "hook_point_layer": 3, "hook_point_head_index": None,
    "dataset_path": "Skylion007/openwebtext", "streaming": True, "is_dataset_tokenized": False, "context_size": 128,
    "use_cached_activations": False, "cached_activations_path": "activations/gpt2-small", "d_in": D, "d_sae": F,
    "b_dec_init_method": "geometric_median", "expansion_factor": 4, "activation_fn": "relu",
    "normalize_sae_decoder": True, "noise_scale": 0.0, "from_pretrained_path": None, "apply_b_dec_to_input": True,
    "decoder_orthogonal_init": False, "decoder_heuristic_init": False, "init_encoder_as_decoder_transpose": False,
    "n_batches_in_buffer": 64, "training_tokens": 1000, "finetuning_tokens": 0, "store_batch_size_prompts": 32,
    "train_batch_size_tokens": 4096, "normalize_activations": False, "device": "cpu", "act_store_device": "cpu",
    "seed": 42, "dtype": "torch.float32", "prepend_bos": True, "autocast": False, "autocast_lm": False,
    "compile_llm": False, "llm_compilation_mode": None, "compile_sae": False, "sae_compilation_mode": None,
    "adam_beta1": 0, "adam_beta2": 0.999, "mse_loss_normalization": None, "l1_coefficient": 0.001, "lp_norm": 1,
    "scale_sparsity_penalty_by_decoder_norm": False, "l1_warm_up_steps": 0, "lr": 0.0003,
    "lr_scheduler_name": "constant", "lr_warm_up_steps": 0, "lr_end": 0.00003, "lr_decay_steps": 0,
    "n_restart_cycles": 1, "finetuning_method": None, "use_ghost_grads": False, "feature_sampling_window": 2000,
    "dead_feature_window": 1000, "dead_feature_threshold": 1e-8, "n_eval_batches": 10,
    "eval_batch_size_prompts": None, "log_to_wandb": False, "log_activations_store_to_wandb": False,
    "log_optimizer_state_to_wandb": False, "wandb_project": "p", "wandb_id": None, "run_name": "r",
    "wandb_entity": None, "wandb_log_frequency": 10, "eval_every_n_wandb_logs": 100, "resume": False,
    "n_checkpoints": 0, "checkpoint_path": "checkpoints", "verbose": True, "model_kwargs": {},
    "model_from_pretrained_kwargs": {}, "sae_lens_version": "2.1.3", "sae_lens_training_version": "2.1.3",
}  # fmt: skip
"""The config of a whole training run, which versions up to 2 keep beside the weights."""

V6: dict[str, Any] = {
    "architecture": "standard", "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu",
    "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
    "metadata": {
        "sae_lens_version": "6.54.12", "sae_lens_training_version": "6.54.12", "model_name": "gpt2",
        "model_class_name": "HookedTransformer", "hook_name": "blocks.3.hook_resid_pre", "hook_head_index": None,
        "context_size": 256, "prepend_bos": False, "seqpos_slice": [5, None], "dataset_path": "x", "l0": 3.0,
        "exclude_special_tokens": False, "sequence_separator_token": "bos", "disable_concat_sequences": False,
        "model_from_pretrained_kwargs": {}, "training_architecture": "standard",
        "training_architecture_details": {"l1_coefficient": 1.0}, "num_dead_features": 0, "neuronpedia_id": None,
    },
}  # fmt: skip
"""A config of version 6."""


def tensors(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()} | more


def write(folder: Path, config: dict[str, Any], values: dict[str, torch.Tensor] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(values or tensors(), folder / "sae_weights.safetensors")
    return folder


def read(folder: Path) -> Found:
    ((found, _, _),) = find_saes(folder)
    return found


def reconstructed(x: torch.Tensor, t: dict[str, torch.Tensor], factor: torch.Tensor | float = 1.0) -> torch.Tensor:
    return (((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu() * factor) @ t["W_dec"] + t["b_dec"]


@pytest.mark.parametrize("config", [V2, V5, V6], ids=["2", "5", "6"])
def test_configs_are_read_whole(config: dict[str, Any], tmp_path: Path):
    found = read(write(tmp_path, config))
    torch.testing.assert_close(found.sae.decode(found.sae.encode(X)), reconstructed(X, tensors()), atol=1e-5, rtol=1e-5)
    assert Site.parse(found.reads) == Site("resid_pre", 3)


FACTOR = 1 + torch.rand(F, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (V5 | {"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        (V5 | {"finetuning_scaling_factor": True}, "scaling_factor"),
        (V2 | {"finetuning_method": "scale"}, "scaling_factor"),
        (V2 | {"finetuning_method": "unrotated_decoder"}, "scaling_factor"),
    ],
)
def test_a_fine_tuned_decoder_is_multiplied(config: dict[str, Any], name: str, tmp_path: Path):
    found = read(write(tmp_path, config, tensors(**{name: FACTOR})))
    expected = reconstructed(X, tensors(), FACTOR)
    torch.testing.assert_close(found.sae.decode(found.sae.encode(X)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "factors", "message"),
    [
        (V5, {"finetuning_scaling_factor": FACTOR}, "finetuning_scaling_factor that is not 1"),
        (V5, {"scaling_factor": FACTOR}, "scaling_factor that is not 1"),
        (V2, {"scaling_factor": FACTOR}, "scaling_factor that is not 1"),
        (V6, {"finetuning_scaling_factor": FACTOR}, "finetuning_scaling_factor that is not 1"),
        (V5 | {"finetuning_scaling_factor": True}, {}, "neither scaling_factor nor finetuning_scaling_factor"),
        (V2 | {"finetuning_method": "scale"}, {}, "neither scaling_factor nor finetuning_scaling_factor"),
        (V2 | {"finetuning_method": "magic"}, {"scaling_factor": FACTOR}, "finetuning_method = 'magic'"),
        (
            V5 | {"finetuning_scaling_factor": True},
            {"scaling_factor": FACTOR, "finetuning_scaling_factor": FACTOR + 1},
            "which of them is meant",
        ),
        (V5 | {"finetuning_scaling_factor": True}, {"scaling_factor": FACTOR[:3]}, r"scaling_factor has shape \(3,\)"),
        (V5 | {"finetuning_scaling_factor": "yes"}, {"scaling_factor": FACTOR}, "finetuning_scaling_factor = 'yes'"),
    ],
)
def test_factors_that_config_and_tensors_contradict(
    config: dict[str, Any], factors: dict[str, torch.Tensor], message: str, tmp_path: Path
):
    write(tmp_path, config, tensors(**factors))
    with pytest.raises(UserError, match=message) as caught:
        load_saes(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [V2, V5], ids=["2", "5"])
def test_a_factor_of_one_changes_nothing(config: dict[str, Any], tmp_path: Path):
    found = read(write(tmp_path, config, tensors(scaling_factor=torch.ones(F))))
    torch.testing.assert_close(found.sae.decode(found.sae.encode(X)), reconstructed(X, tensors()), atol=1e-5, rtol=1e-5)


def prepared(config: dict[str, Any], model: str, hook: str, **kwargs: Any) -> dict[str, Any]:
    facts = {"model_name": model, "model_from_pretrained_kwargs": kwargs}
    if "metadata" in config:
        return {**config, "metadata": {**config["metadata"], **facts, "hook_name": hook}}
    return {**config, **facts, "hook_name": hook}


CENTRED = {"center_writing_weights": True}


@pytest.mark.parametrize("config", [V5, V6], ids=["5", "6"])
@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_resid_mid", "hook_mlp_out", "hook_attn_out"])
def test_a_centred_stream_is_folded(config: dict[str, Any], hook: str, tmp_path: Path):
    found = read(write(tmp_path, prepared(config, "EleutherAI/pythia-70m", f"blocks.3.{hook}", **CENTRED)))
    mean = X.mean(-1, keepdim=True)
    acts = found.sae.encode(X)
    torch.testing.assert_close(found.sae.decode(acts, X), reconstructed(X - mean, tensors()) + mean)
    assert "folded in" in found.remarks[0]


@pytest.mark.parametrize(
    ("model", "hook"),
    [
        ("google/gemma-2-2b", "blocks.3.hook_resid_pre"),  # RMSNorm: TransformerLens centres nothing
        ("HuggingFaceTB/SmolLM2-135M", "blocks.3.hook_resid_pre"),
        ("gpt2", "blocks.3.ln2.hook_normalized"),  # a LayerNorm takes the mean out anyway
    ],
)
def test_where_centring_changes_nothing_nothing_is_folded(model: str, hook: str, tmp_path: Path):
    found = read(write(tmp_path, prepared(V6, model, hook, **CENTRED)))
    assert found.sae.W_skip is None
    torch.testing.assert_close(found.sae.W_enc, tensors()["W_enc"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (prepared(V6, "my-model", "blocks.3.hook_resid_pre", **CENTRED), r"center_writing_weights.*\(my-model\)"),
        (prepared(V6, "gpt2", "blocks.3.mlp.hook_in", fold_ln=True), "fold_ln = True"),
        (prepared(V6, "gpt2", "blocks.3.ln2.hook_normalized", fold_ln=True), "comes before the norm's gain"),
        (prepared(V6, "pythia-70m", "blocks.3.ln1.hook_normalized", fold_ln=True), "comes before the norm's gain"),
        (prepared(V6, "gpt2", "blocks.3.hook_resid_pre", center_writing_weights=1), "center_writing_weights = 1"),
        (prepared(V6, "gpt2", "blocks.3.hook_resid_pre", rotate=True), "rotate = True is not known here"),
        (V5 | {"hook_head_index": 0}, "hook_head_index = 0: it reads one attention head"),
        (V5 | {"hook_layer": 4}, "hook_layer = 4, its hook blocks.3.hook_resid_pre is in layer 3"),
        (V5 | {"seqpos_slice": "all"}, "seqpos_slice = 'all'"),
        (V5 | {"activation_fn_kwargs": {"k": 3}}, "activation_fn_kwargs: k = 3 is not known"),
        (V6 | {"activation_fn": "topk"}, "activation_fn = 'topk' is not known"),
        (V6 | {"k": 3}, "k = 3 is not known"),
        (V6 | {"architecture": "topk", "k": "3", "rescale_acts_by_decoder_norm": False}, "k = '3': expected a number"),
        (V6 | {"architecture": "topk", "k": 2.5, "rescale_acts_by_decoder_norm": False}, "k = 2.5: expected a whole"),
        (V6 | {"dtype": "int8"}, "dtype = 'int8'"),
        (V6 | {"reshape_activations": "hook_z"}, "reshape_activations = 'hook_z' contradicts hook_name"),
        (V5 | {"hook_point": "blocks.4.hook_resid_pre"}, "hook_name = .*, hook_point = .*contradict each other"),
    ],
)
def test_what_cannot_be_folded_or_is_not_known_is_refused(config: dict[str, Any], message: str, tmp_path: Path):
    write(tmp_path, config)
    with pytest.raises(UserError, match=message) as caught:
        load_saes(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_rms_norm_s_hook_lies_before_its_gain_whether_that_is_folded_or_not(tmp_path: Path):
    found = read(write(tmp_path, prepared(V6, "gemma-2-2b", "blocks.3.ln2.hook_normalized", fold_ln=True)))
    assert found.reads == "blocks.3.ln2.hook_normalized"


def test_a_transcoder_into_a_centred_stream_is_refused(tmp_path: Path):
    config = prepared(V6, "gpt2", "blocks.3.ln2.hook_normalized", **CENTRED)
    config |= {"architecture": "transcoder", "apply_b_dec_to_input": False, "d_out": D}
    config["metadata"] |= {"hook_name_out": "blocks.3.hook_mlp_out"}
    write(tmp_path, config)
    with pytest.raises(UserError, match="the mean that a transcoder's output lacks is no function of its input"):
        load_saes(tmp_path)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_a_transcoder_that_normalises_its_input_is_refused(norm: str, tmp_path: Path):
    """SAELens normalises the input of a transcoder and leaves its output as it is."""
    config = V6 | {"architecture": "transcoder", "apply_b_dec_to_input": False, "normalize_activations": norm}
    config["metadata"] = {**V6["metadata"], "hook_name_out": "blocks.3.hook_mlp_out"}
    write(tmp_path, config)
    with pytest.raises(UserError, match=f"normalize_activations = '{norm}': a transcoder's output is in other units"):
        load_saes(tmp_path)


def test_files_from_before_3_19_2_are_read_as_they_are_with_a_remark(tmp_path: Path):
    remarks = read(write(tmp_path / "old", V2)).remarks
    assert len(remarks) == 1
    assert "before 3.19.2 took the mean out" in remarks[0]
    assert not read(write(tmp_path / "new", V5)).remarks
    assert not read(write(tmp_path / "rms", V2 | {"model_name": "gemma-2b"})).remarks
    kwargs = {"model_from_pretrained_kwargs": {"center_writing_weights": False}}
    assert not read(write(tmp_path / "said", V2 | kwargs)).remarks


def test_what_an_sae_was_trained_on_is_kept_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write(tmp_path / "theirs", V6)
    sentence = "trained on gpt2, x, prompts of 256 tokens without BOS, positions 5: only"
    assert notes(find_saes(folder)) == [sentence]
    load_saes(folder)
    assert f"{folder}: {sentence}" in capsys.readouterr().err
    assert sentence in scalar("ls", folder).stdout
    export(list(find_saes(folder)), "scalar", tmp_path / "ours")
    assert notes(find_saes(tmp_path / "ours")) == [sentence], "our own files keep it"
