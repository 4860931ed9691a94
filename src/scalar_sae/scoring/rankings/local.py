"""Local edges: chosen anew at every token of the scored text, as in an attribution graph."""

from dataclasses import dataclass

import torch

from scalar_sae import distributed
from scalar_sae.scoring.memory import fewest_active, local_bytes
from scalar_sae.scoring.pair import Pair, Prompt, read
from scalar_sae.scoring.rankings import effects
from scalar_sae.scoring.rankings.base import KeepJob, KeptEdges, Ranking
from scalar_sae.scoring.sweep.edges import Edges, LocalEdges


@dataclass(frozen=True)
class LocalRanking(Ranking):
    """Edges in the order of the exact effect of removing them at a token; counts are edges per token."""

    scope = "local"

    def room(self, pair: Pair, memory: float, n_token: int, n_counts: int) -> int:
        """Bytes for ordering edges, with the fewest active latents that a token can have."""
        return local_bytes(pair, memory, n_token, n_counts, fewest_active(pair))

    def edges(self, job: KeepJob) -> KeptEdges:
        """The edges with the largest effect at each token, in units of the model's activations."""
        pair, tokens = job.pair, job.texts.scoring
        n_active = max((prompt.active.latent.shape[1] for prompt in read(pair, tokens)), default=1)
        room = local_bytes(pair, job.memory, tokens.shape[1], len(job.counts), n_active)
        grid = torch.from_numpy(job.counts).to(pair.device)

        def of(prompt: Prompt) -> Edges:
            return LocalEdges(effects.at_every_token(pair, prompt), grid, prompt, room)

        job.on_progress(min(job.n_ranked, len(job.texts.ranking)) / distributed.world_size())
        return KeptEdges(of, n_active * pair.down.d_sae)


LOCAL = LocalRanking(
    "local",
    "edges chosen anew at every token of the scored text, by the exact effect of removing them there",
    reads_text=False,
)
