"""The config of SAELens, `cfg.json`, in all its versions and in forks of it (jacobian.py).

Up to version 2 it is the config of the whole training run. From 3 to 5 it is the config of the SAE, mixed with facts
about the model. From 6 on these facts are in `metadata`.
"""

import re
from dataclasses import dataclass

from scalar_sae.errors import UserError
from scalar_sae.saes.formats.fields import DTYPE, FLAG, INTEGER, NUMBER, POSITIONS, TEXT, Fields, Kind, choice
from scalar_sae.saes.origin import Origin

HARMLESS = {
    "how the optimiser ran": "lr lr_end lr_scheduler_name lr_warm_up_steps lr_decay_steps n_restart_cycles adam_beta1 "
    "adam_beta2 seed autocast autocast_lm gradient_accumulation_steps",
    "how long it ran, in what pieces": "training_tokens total_training_tokens total_training_samples "
    "total_training_steps finetuning_tokens train_batch_size train_batch_size_tokens train_batch_size_samples "
    "batch_size_prompts n_instances",
    "what the loss weighed": "l1_coefficient l1_warm_up_steps lp_norm l0_coefficient l0_warm_up_steps target_l0 "
    "pre_act_loss_coefficient aux_loss_coefficient mse_loss_normalization scale_sparsity_penalty_by_decoder_norm "
    "use_matryoshka_aux_loss jumprelu_bandwidth jumprelu_sparsity_loss_mode jumprelu_tanh_scale jumprelu_ste_to_input "
    "topk_threshold_lr use_ghost_grads matryoshka_widths",
    "where the weights began": "expansion_factor b_dec_init_method decoder_init_norm decoder_orthogonal_init "
    "decoder_heuristic_init decoder_heuristic_init_norm init_encoder_as_decoder_transpose jumprelu_init_threshold "
    "from_pretrained_path",
    "what training did to weights and dead latents, before they were saved": "normalize_sae_decoder resample_batches "
    "feature_sampling_method feature_reinit_scale feature_sampling_window dead_feature_window dead_feature_threshold "
    "dead_feature_estimation_method",
    "added to pre-activations in training, not at inference": "noise_scale",
    "how sparse products are computed": "use_sparse_activations",
    "how text became prompts": "streaming is_dataset_tokenized dataset_trust_remote_code exclude_special_tokens "
    "sequence_separator_token disable_concat_sequences",
    "how activations were kept": "n_batches_in_buffer tokens_per_buffer store_batch_size store_batch_size_prompts "
    "use_cached_activations cached_activations_path act_store_device",
    "where and how fast it ran": "device verbose compile_llm llm_compilation_mode compile_sae sae_compilation_mode "
    "model_kwargs",
    "logs and checkpoints": "log_to_wandb log_activations_store_to_wandb log_optimizer_state_to_wandb logger "
    "wandb_project wandb_id run_name wandb_entity wandb_log_frequency eval_every_n_wandb_logs resume "
    "resume_from_checkpoint n_checkpoints checkpoint_path save_final_checkpoint output_path",
    "evaluation during training": "hook_eval hook_point_eval n_eval_batches eval_batch_size_prompts "
    "n_eval_reconstruction_batches n_eval_sparsity_variance_batches n_eval_seqs",
    "who wrote it, and its names elsewhere": "sae_lens_version library_version git_hash neuronpedia_id "
    "training_architecture_details hf_hook_name hf_hook_name_out",
    "measured after training": "l0 num_dead_features",
}
"""Fields of the config and of its `metadata` that cannot change what the SAE computes."""

_LOADING = {
    "changes no activation at any site known here": "center_unembed fold_value_biases refactor_factored_attn_matrices",
    "precision and place of the language model": "dtype torch_dtype device device_map n_devices move_to_device "
    "low_cpu_mem_usage load_in_8bit load_in_4bit attn_implementation use_cache",
    "where the model's files come from": "revision checkpoint_index checkpoint_value cache_dir local_files_only token "
    "use_auth_token trust_remote_code force_download",
    "layers and positions that no SAE sees": "first_n_layers n_ctx",
    "how TransformerLens tokenises, which the SAE's own prepend_bos overrides": "default_prepend_bos "
    "default_padding_side tokenizer",
}
"""Fields of `model_from_pretrained_kwargs` that cannot change what the SAE computes."""

_NORMS = (
    "none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening",
)  # fmt: skip
_STREAM = re.compile(r"hook_resid_(pre|mid|post)|hook_(attn|mlp)_out|hook_mlp_in|mlp\.hook_out")
"""Sites on the residual stream, or whose activation is added to it."""
_LAYER_NORM = re.compile(
    "gpt2|distilgpt2|gpt-neo|gpt-j|pythia|opt-|bloom|stanford-gpt2|alias-gpt2|battlestar-gpt2|caprica-gpt2|darkmatter-"
    "gpt2|eowyn-gpt2|expanse-gpt2|tinystories|tiny-stories|phi-1|phi-2|gelu-|solu-|attn-only|stablelm|santacoder|othello"
)
_RMS_NORM = re.compile("llama|meta-llama|gemma|mistral|mixtral|qwen|yi-|phi-3|olmo-2|smollm|deepseek")
_OLD = (
    "SAELens before 3.19.2 took the mean out of what {model} writes to its stream unless it was told not to; if these "
    'SAEs reconstruct badly, add "model_from_pretrained_kwargs": {{"center_writing_weights": true}} to a copy of '
    "cfg.json: it is then folded exactly"
)
_NORM_OR_FLAG = Kind[str]("a text, true or false", lambda value: _NAMED.get(value, value) if _known(value) else None)
_NAMED = {True: "expected_average_only_in", False: "none"}  # up to version 2 it was a boolean


def _known(value: object) -> bool:
    return isinstance(value, str | bool)


@dataclass(frozen=True)
class Config:
    """The facts about an SAE in `cfg.json`, for all versions."""

    architecture: str
    activation: str
    """The activation function of versions before 6; `relu` if the architecture determines it."""
    k: float | None
    b_dec_from_input: bool
    """Whether b_dec is subtracted from the input."""
    norm: str
    finetuned: bool | None
    """Whether latents are scaled before the decoder; None if the config does not say."""
    by_decoder_norm: bool
    """Whether latents are selected by activation times decoder norm."""
    reads: str
    writes: str
    centred: bool
    """Whether TransformerLens was asked to remove the mean of everything that the model writes to its residual
    stream.
    """
    name: str
    """The architecture that it was trained with."""
    origin: Origin
    remarks: tuple[str, ...]

    def centred_at(self, hook: str) -> bool:
        """Whether the mean was removed from the activation at a hook. This requires the residual stream of a model with
        LayerNorm.

        Raises:
            UserError: it is not known which norm the model has.
        """
        centred = loses_its_mean(self.origin.model, hook) if self.centred else False
        if centred is None:
            raise UserError(
                "model_from_pretrained_kwargs: center_writing_weights = True: whether the model "
                f"({self.origin.model or 'no name'}) has LayerNorm, and so a mean that it ignores, is not known; if it "
                "has RMSNorm, say false in a copy of the file"
            )
        return centred


def loses_its_mean(model: str | None, hook: str) -> bool | None:
    """Whether TransformerLens removes the mean of an activation when it centres what a model writes to its residual
    stream.

    It does so on the residual stream of models with LayerNorm, and leaves models with RMSNorm unchanged. None means
    that the model's norm is not known.
    """
    name = _name(model or "")
    if not _on_stream(hook) or _RMS_NORM.match(name):
        return False
    return True if _LAYER_NORM.match(name) else None


def read(config: Fields) -> Config:
    """Request every field that SAELens writes.

    Raises:
        UserError: a field has another type, contradicts another one, or says that the SAE cannot be read here.
    """
    old = "metadata" not in config
    facts = config if old else config.inside("metadata")
    for fields in (config, facts):
        fields.harmless(HARMLESS)
    architecture = (config.get if old else config.need)("architecture", TEXT) or "standard"
    kwargs = config.inside("activation_fn_kwargs") if old else Fields({}, "")
    activation = (config.one(("activation_fn", "activation_fn_str"), TEXT) if old else None) or "relu"
    if activation == "topk" and architecture == "standard":
        architecture = "topk"  # before 5.0, TopK SAEs are called `standard`
    selects = "topk" in architecture
    k = config.get("k", NUMBER) if selects else None
    if old and selects:
        inner = kwargs.get("k", NUMBER)
        if k is not None and inner not in (None, k):
            raise UserError(f"k = {k:g} and activation_fn_kwargs: k = {inner:g} contradict each other")
        k = inner if k is None else k
    config.get("dtype", DTYPE)
    ask = config.need if not old or not _before(_version(config), [1, 5]) else config.get  # written since 1.5
    norm = ask("normalize_activations", _NORM_OR_FLAG) or "none"
    if norm not in _NORMS:
        raise UserError(f"normalize_activations = {norm!r}: expected one of {', '.join(_NORMS)}")
    reads, writes = _sites(config, facts)
    centred, remarks = _preparation(config, facts, reads)
    subtracted = ask("apply_b_dec_to_input", FLAG)
    method = config.get("finetuning_method", choice("scale", "decoder", "unrotated_decoder"))
    finetuned = config.get("finetuning_scaling_factor", FLAG)
    if finetuned is None and config.mentions("finetuning_method"):
        finetuned = method is not None
    rescales = config.get if _before(facts.get("sae_lens_version", TEXT), [6, 14]) else config.need
    return Config(
        architecture=architecture,
        activation=activation,
        k=k,
        b_dec_from_input=True if subtracted is None else subtracted,
        norm=norm,
        finetuned=finetuned,
        by_decoder_norm=bool(selects and rescales("rescale_acts_by_decoder_norm", FLAG)),
        reads=reads,
        writes=writes,
        centred=centred,
        name=facts.get("training_architecture", TEXT) or architecture,
        origin=_origin(facts),
        remarks=remarks,
    )


def _origin(facts: Fields) -> Origin:
    positions = facts.get("seqpos_slice", POSITIONS)
    whole = not positions or all(bound is None or (i, bound) in ((0, 0), (2, 1)) for i, bound in enumerate(positions))
    if positions and len(positions) == 1:
        whole = positions[0] is None
    return Origin(
        model=facts.get("model_name", TEXT),
        text=facts.get("dataset_path", TEXT) or None,
        context=facts.get("context_size", INTEGER),
        bos=facts.get("prepend_bos", FLAG),
        positions=None if whole else positions,
    )


def _sites(config: Fields, facts: Fields) -> tuple[str, str]:
    """The hooks that are read and written. All fields that name them must agree."""
    reads = facts.one(("hook_name", "hook_point"), TEXT) or ""
    writes = facts.get("hook_name_out", TEXT) or ""
    for head in ("hook_head_index", "hook_point_head_index", "hook_head_index_out"):
        if (index := facts.get(head, INTEGER)) is not None:
            raise UserError(f"{head} = {index}: it reads one attention head, and no site here is one head's")
    if layer := re.match(r"blocks\.(\d+)\.", reads):
        for key in ("hook_layer", "hook_point_layer"):
            facts.same(key, INTEGER, int(layer[1]), f"its hook {reads} is in layer")
    elif reads:
        facts.harmless({"there is no layer in the hook's name": "hook_layer hook_point_layer"})
    shape = config.get("reshape_activations", choice("none", "hook_z"))
    if shape == "hook_z" and not reads.endswith("hook_z"):
        raise UserError(f"reshape_activations = 'hook_z' contradicts hook_name = {reads!r}")
    return reads, writes


def _preparation(config: Fields, facts: Fields, reads: str) -> tuple[bool, tuple[str, ...]]:
    """Whether the model was asked to remove means on its residual stream, and remarks on how it was prepared."""
    kwargs = facts.inside("model_from_pretrained_kwargs")
    kwargs.harmless(_LOADING)
    centred, folded = kwargs.get("center_writing_weights", FLAG), kwargs.get("fold_ln", FLAG)
    kind = facts.get("model_class_name", choice("HookedTransformer", "HookedMamba", "AutoModelForCausalLM"))
    version = _version(facts) or _version(config)
    model = facts.get("model_name", TEXT) or ""
    behind = r"(mlp|attn)\.hook_in" if _RMS_NORM.match(_name(model)) else r"(mlp|attn)\.hook_in|ln[12]\.hook_normalized"
    # the hook_normalized of an RMSNorm lies before its gain in any case
    if folded and re.fullmatch(behind, _hook(reads)):
        raise UserError(
            f"model_from_pretrained_kwargs: fold_ln = True: {reads} then comes before the norm's gain, which is not "
            "in these files; fold it into W_enc, and say fold_ln = false"
        )
    old = _before(version, [3, 19, 2]) if version else "hook_point" in facts
    if old and centred is None and _on_stream(reads) and not _RMS_NORM.match(_name(model)):
        return False, (_OLD.format(model=model or "the model"),)
    return bool(centred) and kind in (None, "HookedTransformer"), ()


def _on_stream(hook: str) -> bool:
    return _STREAM.fullmatch(_hook(hook)) is not None


def _hook(hook: str) -> str:
    """TransformerLens' name of a hook without its layer."""
    return re.sub(r"^blocks\.\d+\.", "", hook)


def _name(model: str) -> str:
    return model.lower().rpartition("/")[2]


def _version(fields: Fields) -> str | None:
    return fields.get("sae_lens_training_version", TEXT)


def _before(version: str | None, release: list[int]) -> bool:
    """Whether a version is older than a release. A missing version counts as old."""
    return version is None or [int(number) for number in re.findall(r"\d+", version)[:3]] < release
