/** Questions to the server. On a page without one only those that were answered before it was written have answers. */

import type { CardContent } from "./card";

export interface Pair { key: string; method: string; block: string; rankings: string[]; records: boolean; mixes: boolean; next: string[] }
export interface Run { name: string; lm: string; judge: string | null; version: string; pairs: Pair[] }
export interface Point {
  edges: number; recovery: number; recovery_low: number | null; recovery_high: number | null; kl_model: number;
  kl_circuit: number; faithfulness: number; live_edges: number; l0_down: number;
}
export interface Label { density: number; tokens: string[]; promotes: string[] }
export type Labels = { up: Record<number, Label>; down: Record<number, Label> };
export interface MapAnswer {
  n_up: number; n_down: number; n_edges: number; edges: [number, number, number][]; labels: Labels; described: boolean;
  curve: Point[]; ablation: string;
}
export interface CardAnswer extends CardContent {
  missing?: true; density: number; maximum: number; octave_of: number[]; lengths: number[]; vocabulary: Record<number, string>;
}
export interface TokensAnswer { tokens: string[]; special: boolean[] }
export interface Measured {
  edges: number; kl_model: number; kl_circuit: number; recovery: number; faithfulness: number | null;
  live_edges: number; l0_down: number; floor_kl: number; prompts?: number;
}
export interface LocalEdge {
  source: number; up: number; up_activation: number; down: number; down_activation: number; effect: number; size: number;
}
export interface StepAnswer {
  edges: { position: number; n_edges: number; total_size: number; edges: LocalEdge[] };
  outputs: {
    position: number; predicted: { token: number; text: string; logit: number; p: number }[];
    latents: { latent: number; activation: number; kl: number; logits: number[] }[];
  };
  curve: { edges: number[]; kl_model: number[]; kl_circuit: number[]; recovery: number[] };
  labels: Labels;
}
export interface EdgeAnswer {
  n_prompts: number; n_reached: number; kl: number; quantiles: number[]; levels: number[];
  examples: { prompt: number; position: number; effect: number; kl: number; text: string; tokens: string[] }[];
}
export interface SplitAnswer { effect: number; pre_act: number; parts: { source: number; head: number | null; effect: number; pre_act: number }[] }
export interface ExplainAnswer { explanation: string | null; detection: number | null; fuzzing: number | null; judge: string }
export type GroupsAnswer = { members: string[]; alike: number }[];
export interface Intervention { up?: number; down?: number; positions?: number[]; factor: number }
export interface ChangeAnswer {
  position: number; kl: number; kl_mean: number; reached: number[];
  next_tokens: { token: number; text: string; logit: number; logit_after: number; change: number; p: number; p_after: number }[];
}

export interface Answers {
  run: Run; examples: string[]; map: MapAnswer; card: CardAnswer; tokens: TokensAnswer; recovery: Measured;
  "held-out": Measured; step: StepAnswer; change: ChangeAnswer; edge: EdgeAnswer; split: SplitAnswer; graph: { metadata: { slug: string } };
  chain: Measured; groups: GroupsAnswer; explain: ExplainAnswer;
}
export type Name = keyof Answers;

declare const explorer: { live: boolean; answers: Record<string, unknown>; state: string };

/** Whether there is a server behind the page. */
export const live = explorer.live;
/** The state that a page without an address of its own opens with. */
export const opening = explorer.state;
const known = new Map<string, unknown>(Object.entries(explorer.answers));
const MOST = 200;
/** In place of a share: the language model is still being loaded. */
export const LOADING = -1;

export const keyOf = (name: Name, body: object): string => `${name} ${JSON.stringify(body)}`;

/** An answer that is already here. */
export const here = <N extends Name>(name: N, body: object): Answers[N] | undefined =>
  known.get(keyOf(name, body)) as Answers[N] | undefined;

/** Ask the server; progress is a share, or LOADING. Aborting the signal stops the work. */
export async function ask<N extends Name>(
  name: N, body: object, signal?: AbortSignal, onProgress: (share: number) => void = () => undefined,
): Promise<Answers[N]> {
  const found = here(name, body);
  if (found !== undefined) return found;
  if (!live) throw new Error("This page has no server behind it, and this was not looked at before it was written.");
  const gone = (what: string) => (error: unknown): never => {
    if (signal?.aborted) throw error;
    throw new Error(`${what} Try again. If it has ended, start scalar explore anew and put the part of this page's address from # on behind the new address: it keeps what you did.`);
  };
  const reply = await fetch(`ask/${name}`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  }).catch(gone("The server does not answer."));
  if (!reply.ok || !reply.body) throw new Error(((await reply.json()) as { error: string }).error);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(gone("The server ended before it had answered."));
    if (done) return gone("The server ended before it had answered.")(undefined);
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      const said = JSON.parse(line) as { loading?: true; progress?: number; answer?: Answers[N]; error?: string };
      if (said.error !== undefined) throw new Error(said.error);
      if (said.loading || said.progress !== undefined) onProgress(said.progress ?? LOADING);
      if (said.answer !== undefined) {
        remember(keyOf(name, body), said.answer);
        return said.answer;
      }
    }
  }
}

function remember(key: string, answer: unknown): void {
  known.set(key, answer);
  for (const old of known.keys()) {
    if (known.size <= MOST) break;
    if (!old.startsWith("run ")) known.delete(old);
  }
}

/** The questions whose answers are here: what a page that is written to disk can show. */
export const asked = (): string[] => [...known.keys()].filter((key) => !key.startsWith("graph "));
