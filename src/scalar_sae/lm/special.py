"""Tokens that are not text: no SAE is trained on them, and none is measured there."""

from scalar_sae.lm.model import LanguageModel


def special_tokens(lm: LanguageModel) -> tuple[int, ...]:
    """Ids that mark beginnings and ends of text or padding: no SAE is trained on them."""
    named = (getattr(lm.hf.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id"))
    return tuple(sorted({token for token in named if isinstance(token, int)}))
