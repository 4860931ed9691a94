/** A circuit of several blocks: the pinned edges of pairs that follow each other, their paths, and what they recover together. */
import type { Pair } from "./api";
import { useAnswer } from "./hooks";
import { Waiting } from "./parts";
import { Reading } from "./pins";
import { choosePair, pinned, type State } from "./state";
import { some } from "./text";

const SHOWN = 50;

/** The pairs with pins that follow each other through this one, in the order of the forward pass. */
function chainOf(state: State, pairs: Pair[]): Pair[] {
  const has = (pair: Pair) => pair.key === state.pair ? state.pins.length > 0 : (state.others[pair.key]?.length ?? 0) > 0;
  const here = pairs.find((pair) => pair.key === state.pair);
  if (!here || !has(here)) return [];
  const found = [here];
  for (;;) {
    const last = found[found.length - 1]!, next = pairs.find((pair) => last.next.includes(pair.key) && has(pair) && !found.includes(pair));
    if (!next) break;
    found.push(next);
  }
  for (;;) {
    const first = found[0]!, before = pairs.find((pair) => pair.next.includes(first.key) && has(pair) && !found.includes(pair));
    if (!before) return found;
    found.unshift(before);
  }
}

/** Features that pinned edges join through all of the pairs. */
function paths(parts: { edges: [number, number][]; up: number[]; down: number[] }[]): number[][] {
  let found: number[][] = [];
  parts.forEach(({ edges, up, down }, at) => {
    const all = new Map([...edges, ...up.flatMap((i) => down.map((j) => [i, j] as [number, number]))].map((edge) => [edge.join(), edge]));
    found = at === 0 ? [...all.values()] : found.flatMap((path) => [...all.values()].filter(([i]) => i === path[path.length - 1]).map(([, j]) => [...path, j]));
  });
  return found;
}

export function Chain({ state, pairs }: { state: State; pairs: Pair[] }) {
  const chain = chainOf(state, pairs), whole = chain.length > 1;
  const parts = chain.map(({ key, rankings }) => ({
    pair: key, ranking: key === state.pair ? state.ranking : rankings[0]!, ...pinned(key === state.pair ? state.pins : state.others[key]!),
  }));
  const asked = useAnswer("chain", whole && state.text ? { parts, text: state.text } : null);
  if (!whole) return null;
  const found = paths(parts);
  return (
    <section aria-label="Chain" id="chain">
      <h2>Through {some(chain.length, "block")}</h2>
      <p class="row">{chain.map(({ key, block }) => <button key={key} type="button" aria-pressed={key === state.pair} onClick={() => choosePair(key)}>{block}</button>)}</p>
      {asked.answer && <Reading found={asked.answer} where="together on this prompt" id="chain-recovery" />}
      <Waiting asked={asked} what="recovery of the chain" />
      {found.length > 0 && <h3>{some(found.length, "path")}{found.length > SHOWN && `, ${SHOWN} of them shown`}</h3>}
      <ul class="pins" id="paths">{found.slice(0, SHOWN).map((path) => <li key={path.join()}>{path.join(" → ")}</li>)}</ul>
      {!found.length && <p class="hint">No pinned edge goes on where another ends, so no path leads through all of them.</p>}
      <p class="hint">Each block starts from what the one before it leaves. All their other edges are cut.</p>
    </section>
  );
}
