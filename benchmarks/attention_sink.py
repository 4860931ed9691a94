"""What an attention sink does to a score when it is spliced: python -m benchmarks.attention_sink

The heads of a small GPT-2 attend to the beginning-of-text token alone, as long as its activation is what it should be.
TopK SAEs are trained on both sides of its first FF block, and the pair is scored under both rules for special tokens.
"""

import sysconfig
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from scalar_sae import LanguageModel, Pair, ScoreConfig, load_corpus, load_saes, score
from scalar_sae.io import Events
from scalar_sae.lm.special import Rule
from scalar_sae.scoring.config import held_out
from scalar_sae.sites import Block
from scalar_sae.training.config import TrainConfig
from scalar_sae.training.loop import train

D_MODEL = 64
BOS = "<bos>"
FILES = ("argparse.py", "ast.py", "cgi.py", "calendar.py", "bdb.py", "enum.py")
"""Of the standard library; one that this Python does not have is left out."""


def tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Byte pairs of the text, with a token in front of every text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=400, special_tokens=[BOS], initial_alphabet=alphabet)
    )
    inner.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BOS, eos_token=BOS)


def sink(d_vocab: int) -> GPT2LMHeadModel:
    """A GPT-2 in which one dimension, which token 0 alone writes, is the key that every query asks for."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=d_vocab, n_embd=D_MODEL, n_layer=3, n_head=1, n_positions=64, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=False, initializer_range=0.15,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        hf.transformer.wte.weight[:, 0] = hf.transformer.wpe.weight[:, 0] = 0
        hf.transformer.wte.weight[0] = 0
        hf.transformer.wte.weight[0, 0] = 60.0
        for block in hf.transformer.h:
            block.attn.c_attn.bias[0] = 8.0
            block.attn.c_attn.weight[:, D_MODEL] = 0
            block.attn.c_attn.weight[0, D_MODEL] = 8.0
            block.attn.c_proj.weight[:, 0] = block.mlp.c_proj.weight[:, 0] = 0
        hf.lm_head.weight.mul_(3)
    return hf


def main() -> None:
    library = Path(sysconfig.get_path("stdlib"))
    text = "\n".join((library / name).read_text() for name in FILES if (library / name).is_file())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "text.txt").write_text(text)
        words = tokenizer(text)
        lm = LanguageModel.load(sink(len(words)), tokenizer=words)
        corpus = load_corpus(str(folder / "text.txt"), lm)
        saes = {"method": "topk", "sites": ["resid_mid.0", "resid_post.0"], "expansion": 8, "k": 16}
        config = TrainConfig(
            saes=[saes], tokens=400_000, batch_tokens=1024, buffer_tokens=16_384, context=64, lr=3e-3, warmup_steps=20,
            validations=1,
        )  # fmt: skip
        train(config, lm, corpus, folder / "run", Events(None))
        [trained] = load_saes(folder / "run").values()
        pair = Pair.between(lm, Block.parse("ff_block.0"), trained)
        print("| special tokens | floor, nats | increase of cross-entropy, nats | edges@90 |\n|---|---|---|---|")
        rules: tuple[Rule, ...] = ("skip", "count")
        for rule in rules:
            how = ScoreConfig(ranking="leave_one_out_with_prior", rank_prompts=16, prompts=32, context=64, special=rule)
            record = score(pair, held_out(corpus, how), how, method="topk")
            edges = record.edges_at["90"]
            said = "never" if edges is None else f"{edges:,.0f}"
            print(f"| {rule} | {record.floor.kl:.3f} | {record.floor.ce_increase:.3f} | {said} |", flush=True)


if __name__ == "__main__":
    main()
