"""Files written by other libraries themselves, and what those libraries compute from them.

Not a test: run it in an environment that has sae-lens, dictionary-learning and eai-sparsify (none of which this package
depends on). `test_peer_files.py` reads what it wrote.

    python -m tests.saes.formats.peer_files write tests/saes/formats/peers
    python -m tests.saes.formats.peer_files read FOLDER      # what test_export.py leaves with --basetemp: opens them
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

D_IN, D_SAE, D_OUT, K, SCALE = 6, 16, 5, 3, 0.7
X = 2 * torch.randn(12, D_IN, generator=torch.Generator().manual_seed(9)) + 0.5


@torch.no_grad()
def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Weights and biases of every sign, decoder rows of every length; thresholds positive."""
    g = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        value = 0.5 * torch.randn(parameter.shape, generator=g)
        parameter.copy_(value.abs() if "threshold" in name else value)
    return module


def expect(folder: Path, acts: torch.Tensor, x_hat: torch.Tensor) -> None:
    tensors = {"x": X, "acts": acts.float(), "x_hat": x_hat.float()}
    path = folder.with_name(folder.name + ".expected.safetensors")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def write_saelens(out: Path) -> None:
    from sae_lens import saes as lens
    from sae_lens.training.activation_scaler import ActivationScaler

    hooks = {"hook_name": "blocks.2.hook_resid_mid", "model_name": "gpt2"}
    plain = {"d_in": D_IN, "d_sae": D_SAE}
    into = {"hook_name": "blocks.2.hook_mlp_in", "hook_name_out": "blocks.2.hook_mlp_out"}
    trans = {**plain, "d_out": D_OUT, "apply_b_dec_to_input": False}
    meta = lens.sae.SAEMetadata
    inference = {
        "standard": lens.StandardSAE(lens.StandardSAEConfig(**plain)),
        "standard-bf16": lens.StandardSAE(lens.StandardSAEConfig(**plain, dtype="bfloat16")),
        "standard-layer-norm": lens.StandardSAE(lens.StandardSAEConfig(**plain, normalize_activations="layer_norm")),
        "standard-constant-norm": lens.StandardSAE(
            lens.StandardSAEConfig(**plain, normalize_activations="constant_norm_rescale")
        ),
        "jumprelu": lens.JumpReLUSAE(lens.JumpReLUSAEConfig(**plain)),
        "gated": lens.GatedSAE(lens.GatedSAEConfig(**plain, apply_b_dec_to_input=False)),
        "topk": lens.TopKSAE(lens.TopKSAEConfig(**plain, k=K)),
        "topk-by-decoder-norm": lens.TopKSAE(lens.TopKSAEConfig(**plain, k=K, rescale_acts_by_decoder_norm=True)),
        "transcoder": lens.Transcoder(lens.TranscoderConfig(**trans)),
        "skip_transcoder": lens.SkipTranscoder(lens.SkipTranscoderConfig(**trans)),
        "jumprelu_transcoder": lens.JumpReLUTranscoder(lens.JumpReLUTranscoderConfig(**trans)),
        "jumprelu_skip_transcoder": lens.JumpReLUSkipTranscoder(lens.JumpReLUSkipTranscoderConfig(**trans)),
    }
    for name, sae in inference.items():
        sae.cfg.metadata = meta(**(into if "transcoder" in name else hooks))
        randomise(sae).save_model(out / name)
        acts = sae.encode(X)
        if name.startswith("topk-by"):  # SAELens keeps their decoder rows long; both forms decode alike
            sae.fold_W_dec_norm()
            sae.cfg.rescale_acts_by_decoder_norm = False
            torch.testing.assert_close(sae.encode(X), acts)
        expect(out / name, acts, sae(X))
    for name, by_norm in (("batchtopk", False), ("batchtopk-by-decoder-norm", True)):
        config = lens.BatchTopKTrainingSAEConfig(
            **plain, k=K, rescale_acts_by_decoder_norm=by_norm, normalize_activations="expected_average_only_in",
            metadata=meta(**hooks),
        )  # fmt: skip
        sae = randomise(lens.BatchTopKTrainingSAE(config))
        sae.topk_threshold = torch.tensor(0.4, dtype=torch.double)
        checkpoint = out / f"{name}-checkpoint"
        sae.save_model(checkpoint)
        scaler = ActivationScaler(SCALE)
        scaler.save(str(checkpoint / "activation_scaler.json"))
        sae.fold_activation_norm_scaling_factor(SCALE)
        sae.save_inference_model(out / name)
        final = lens.JumpReLUSAE.load_from_disk(out / name)
        for folder in (checkpoint, out / name):
            expect(folder, final.encode(X), final(X))
    config = lens.StandardTrainingSAEConfig(
        **plain, normalize_activations="covariance_whitening", metadata=meta(**hooks)
    )
    sae = randomise(lens.StandardTrainingSAE(config))
    sae.save_model(out / "whitening-checkpoint")
    scaler = ActivationScaler()
    batches = iter(2 * torch.randn(40, 64, D_IN, generator=torch.Generator().manual_seed(2)) + 1)
    scaler.estimate_whitening(D_IN, batches, 40)
    scaler.save(str(out / "whitening-checkpoint" / "activation_scaler.json"))
    w = scaler.whitening
    sae.fold_activation_whitening(w.mean, w.matrix, w.inverse_matrix)
    expect(out / "whitening-checkpoint", sae.encode(X), sae(X))


def write_dictionary_learning(out: Path) -> None:
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK
    from dictionary_learning.utils import load_dictionary

    saes = {
        "AutoEncoder": dictionary.AutoEncoder(D_IN, D_SAE),
        "AutoEncoderNew": dictionary.AutoEncoderNew(D_IN, D_SAE),
        "GatedAutoEncoder": dictionary.GatedAutoEncoder(D_IN, D_SAE),
        "JumpReluAutoEncoder": dictionary.JumpReluAutoEncoder(D_IN, D_SAE),
        "AutoEncoderTopK": AutoEncoderTopK(D_IN, D_SAE, K),
        "BatchTopKSAE": BatchTopKSAE(D_IN, D_SAE, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [6, 10]),
    }
    for name, sae in saes.items():
        folder = out / name
        folder.mkdir(parents=True)
        randomise(sae)
        if "BatchTopK" in name:
            sae.threshold.fill_(0.4)
        torch.save({key: value.cpu() for key, value in sae.state_dict().items()}, folder / "ae.pt")
        trainer = {"dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE, "k": K, "layer": 2,
                   "lm_name": "gpt2", "submodule_name": "resid_post_layer_2"}  # fmt: skip
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
        if not name.startswith("AutoEncoder") or name == "AutoEncoderTopK":  # those two normalise when they load
            sae, _ = load_dictionary(str(folder), "cpu")
        expect(folder, sae.encode(X), sae(X))


def write_sparsify(out: Path) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    cases = {
        "h.2": {},
        "h.2.attn": {"activation": "groupmax", "k": 4},
        "h.2.mlp": {"transcode": True, "skip_connection": True},
    }
    for name, changes in cases.items():
        config = SparseCoderConfig(**{"num_latents": D_SAE, "k": K, **changes})
        coder = randomise(SparseCoder(D_IN, config))
        coder.save_to_disk(out / name)
        expect(out / name, *_sparsify(SparseCoder.load_from_disk(out / name), X))


def _sparsify(coder, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    top_acts, top_indices, _ = coder.encode(x)
    x_hat = coder.decode(top_acts, top_indices)
    acts = torch.zeros(len(x), coder.num_latents).scatter_(-1, top_indices, top_acts)
    return acts, x_hat if coder.W_skip is None else x_hat + x @ coder.W_skip.mT


def read(folder: Path) -> None:
    """Open exported SAEs with the libraries they were exported for, and compare with our own numbers beside them."""
    from sae_lens import SAE
    from sparsify import SparseCoder

    for path in sorted(folder.rglob("*.expected.safetensors")):
        ours = load_file(path)
        sae = path.with_name(path.name.removesuffix(".expected.safetensors"))
        if (sae / "sae_weights.safetensors").is_file():
            theirs = SAE.load_from_disk(sae)
            acts, x_hat = theirs.encode(ours["x"]), theirs(ours["x"])
        else:
            theirs = SparseCoder.load_from_disk(sae)
            acts, x_hat = _sparsify(theirs, ours["x"])
        torch.testing.assert_close(acts, ours["acts"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(x_hat, ours["x_hat"], atol=1e-5, rtol=1e-5)
        print(f"{sae.relative_to(folder)}: read by {type(theirs).__name__}, same numbers")  # noqa: T201


if __name__ == "__main__":
    verb, target = sys.argv[1], Path(sys.argv[2])
    if verb == "read":
        read(target)
    else:
        write_saelens(target / "saelens")
        write_dictionary_learning(target / "dictionary_learning")
        write_sparsify(target / "sparsify")
