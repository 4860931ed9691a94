"""Checks before a model computes: whether it has the sites, and whether it can read the token ids."""

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from scalar_sae.errors import UserError, quoted
from scalar_sae.lm.anatomy import Anatomy
from scalar_sae.lm.norms import before_gain
from scalar_sae.sites import Site
from scalar_sae.tokenizer import Tokenizer


def check_site(site: Site, anatomy: Anatomy, name: str) -> None:
    """Raise a UserError if the model has no such site, or if the module that the site is named after lies at another
    one.

    Args:
        site: the site.
        anatomy: the model's parts.
        name: the model's name, for messages.
    """
    layers = anatomy.layers
    if site.layer >= len(layers):
        raise UserError(f"{site}: {name} has {len(layers)} layers (0-{len(layers) - 1})")
    kinds = layers[site.layer].kinds
    if site.kind not in kinds:
        parallel = anatomy.architecture.parallel and site.kind == "resid_mid"
        reason = "runs attention and MLP side by side" if parallel else "adds attention's and MLP's output as it is"
        raise UserError(f"{site}: {name} {reason}, so its layers have only {', '.join(kinds)}")
    raw = f"{site.kind.removesuffix('_out')}_raw"
    if site.of_module and raw in kinds:
        raise UserError(
            f"{site}: the SAE's files name a module of {name} whose output is normalised or scaled before it "
            f"joins the residual stream; say which place it is: {raw}.{site.layer}=PATH (the module's output) or "
            f"{site}=PATH"
        )
    if site.of_module and anatomy.architecture.stream is not None:
        after = "resid_mid" if site.kind == "attn_out" else "resid_post"
        raise UserError(
            f"{site}: the SAE's files name a module of {name} that adds the residual stream to its output; "
            f"say which place it is: {after}.{site.layer}=PATH (the module's output) or {site}=PATH"
        )
    if site.normalized and (norm := anatomy.norm_before(site)) is not None and before_gain(norm):
        raise UserError(
            f"{site}: the SAE's files name TransformerLens' hook_normalized, which in {name} lies before the "
            f"norm's gain; rewrite its weights with scalar_sae.fitted(lm, saes), or say {site}=PATH if it reads "
            "after the gain"
        )


def encoded(text: str, tokenizer: Tokenizer, name: str) -> Int64[Tensor, "one token"]:
    """Encode a text as one prompt. It starts with the tokens that the tokenizer puts before every text.

    Raises:
        UserError: the text has no tokens, or characters outside the vocabulary.
    """
    ids, n_unknown = tokenizer.encode(text)
    if n_unknown:
        raise UserError(f"{quoted(text)}: {n_unknown} of its characters are not in the vocabulary of {name}")
    if not len(ids):
        raise UserError(f"{quoted(text)}: the text has no tokens; give a longer one")
    return torch.cat([torch.tensor(tokenizer.start, dtype=torch.long), ids.long()]).unsqueeze(0)


def as_prompts(tokens: Tensor) -> Int64[Tensor, "batch token"]:
    """Convert token ids of any integer type to int64.

    Raises:
        UserError: they are not integers of shape [batch, token].
    """
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool or tokens.dim() != 2:
        given = f"{str(tokens.dtype).removeprefix('torch.')} of shape {tuple(tokens.shape)}"
        raise UserError(f"tokens: expected integers of shape [batch, token], not {given}; lm.tokens(text) makes them")
    return tokens.long()


def check_tokens(
    tokens: Int[Tensor, "batch token"], name: str, context: int, d_vocab: int, tokenizer: Tokenizer | None
) -> None:
    """Raise a UserError if the model cannot read these tokens.

    Args:
        tokens: prompts.
        name: the model's name, for messages.
        context: maximum number of tokens in a prompt.
        d_vocab: size of the model's vocabulary.
        tokenizer: the model's tokenizer, if known.
    """
    if tokens.shape[1] > context:
        raise UserError(f"prompts of {tokens.shape[1]} tokens: {name} reads at most {context}")
    if not tokens.numel():
        return
    least, most = (int(end) for end in tokens.aminmax())
    if least < 0:
        raise UserError(f"token {least}: token ids begin at 0")
    if most >= d_vocab:
        there = f"the vocabulary of {name} ends at {d_vocab - 1}"
        if tokenizer is not None and most in tokenizer.special:
            raise UserError(
                f"token {most} ({tokenizer.decode([most])}, a special token of its tokenizer): {there}; take the "
                "tokenizer that it was trained with, or resize its embedding (resize_token_embeddings)"
            )
        raise UserError(f"token {most}: {there}; the text was made with another model's tokenizer")
