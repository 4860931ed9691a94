"""The tables of docs/validity.md: python -m tests.validity."""

from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.score import score
from tests.validity.planted import Planted, config, dense, merged, planted, random, rotated, texts


def dictionaries(circuit: Planted) -> dict[str, Pair]:
    """Pairs that know less and less of a planted circuit."""
    turned = {
        f"upstream latents turned by {angle}": circuit.pair(rotated(circuit.D_up, angle)) for angle in (0.2, 0.4, 0.7)
    }
    return {
        "the true ones": circuit.pair(),
        **turned,
        "upstream latents merged in pairs": circuit.pair(merged(circuit.D_up)),
        "upstream: a random basis of the same space": circuit.pair(dense(circuit.D_up)),
        "downstream: a random basis of the same space": circuit.pair(circuit.D_up, dense(circuit.D_down)),
        "random directions at both ends": circuit.pair(random(len(circuit.D_up), 1), random(len(circuit.D_down), 2)),
    }


def main() -> None:
    for per_latent in (1, 3, 10):
        circuit = planted(per_latent)
        print(f"\n{circuit.n_edges} planted edges, {per_latent} into each downstream latent\n")
        print(
            "| dictionaries | faithful@50 | faithful@80 | faithful@90 | floor (nats) | edges@90 of their own recovery |"
        )
        print("|---|---|---|---|---|---|")
        for name, pair in dictionaries(circuit).items():
            record = score(pair, texts(), config("leave_one_out_with_prior"), on_progress=lambda n: None)
            cells = [record.faithful_at[level] for level in ("50", "80", "90")]
            said = ["never" if n is None else f"{n:,.0f}" for n in (*cells, record.edges_at["90"])]
            print(f"| {name} | {' | '.join(said[:3])} | {abs(record.floor.kl):.2f} | {said[3]} |")
        print(f"\nThe downstream site set to its mean: {record.kl_mean:.2f} nats.")


if __name__ == "__main__":
    main()
