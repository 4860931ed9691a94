"""Seconds for each question of the explorer about one prompt: python -m benchmarks.explorer RUN METHOD BLOCK

The pair is as the page has it, with mean ablation if its record says so. The prompt is the beginning of the run's
held-out text. The questions are asked in the order of the table, and a journey keeps what its questions share. Each
group of questions begins with a new journey. CPU seconds add up over cores and do not count other processes.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from scalar_sae import Circuit, Intervention, Journey, load_run
from scalar_sae.explorer.subject import Subject
from scalar_sae.malloc import keep_freed_memory

PINNED = 50


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds for each question of the explorer about one prompt.")
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("method", help="name of the SAEs in the run")
    parser.add_argument("block", help="block between two of its SAEs")
    parser.add_argument("--tokens", type=int, default=256, help="length of the prompt")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    run = load_run(given.run)
    subject = Subject.of_run(run)
    key = f"{given.method}/{given.block}"
    pair = subject.pair(key, subject.pair_subject(key).rankings[0])
    tokens = run.text.val[: given.tokens].unsqueeze(0)
    last = given.tokens - 1
    local = Journey(pair, tokens).edges(last, n=5000)
    pins = list(dict.fromkeys((edge.up, edge.down) for edge in local.edges))[:PINNED]
    circuit, up = Circuit.of(pair, pins), local.edges[0].up
    table = Table(title=f"{pair}, {given.tokens} tokens, {given.threads} threads")
    for column in ("question", "seconds", "CPU seconds"):
        table.add_column(column, justify="left" if column == "question" else "right")

    def ask(name: str, question: Callable[[], Any]) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        answer = question()
        table.add_row(name, f"{time.perf_counter() - start:.2f}", f"{time.process_time() - cpu:.2f}")
        return answer

    journey = ask("read the prompt", lambda: Journey(pair, tokens))
    ask("local edges of the last token", lambda: journey.edges(last, n=5000))
    ask("what its latents do to the prediction", lambda: journey.outputs(last))
    ask("its local curve", lambda: journey.curve(last))
    ask("local edges of a token in the middle", lambda: journey.edges(last // 2, n=5000))
    ask("what its latents do to the prediction", lambda: journey.outputs(last // 2))
    ask("its local curve", lambda: journey.curve(last // 2))
    journey = Journey(pair, tokens)
    ask(f"recovery of {len(pins)} pinned edges", lambda: journey.measure(circuit))
    ask("of one edge less", lambda: journey.measure(circuit.without(edges=pins[:1])))
    journey = Journey(pair, tokens)
    ask("the prediction without an edge", lambda: journey.intervene([Intervention(up=pins[0][0], down=pins[0][1])]))
    ask("without a latent", lambda: journey.intervene([Intervention(up=up)]))
    Console().print(table)


if __name__ == "__main__":
    main()
