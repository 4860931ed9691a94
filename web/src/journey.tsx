/** The journey of a prompt: at one token, from upstream features through downstream features to the prediction. */
import { useMemo } from "preact/hooks";
import type { LocalEdge, Pair, StepAnswer, TokensAnswer } from "./api";
import { Columns, type Column, type Link } from "./columns";
import { Curve, nearest } from "./curve";
import type { Asked } from "./hooks";
import { detailOf, nameOf } from "./labels";
import { Waiting } from "./parts";
import { TokenRow } from "./prompt";
import { pin, set, type State } from "./state";
import { count, number, percent, some, token } from "./text";

const ROWS = 60, USUAL = 20;

interface Drawn { columns: Column[]; links: Link[]; kept: LocalEdge[]; left: number }

/** The edges that are drawn for a state, as source token, upstream and downstream feature. */
export function drawnEdges(step: StepAnswer, state: State): [number, number, number][] {
  const points = step.curve.edges.map((edges) => ({ edges }));
  const n = points[nearest(points, state.local < 0 ? USUAL : state.local)]?.edges ?? 0;
  return drawn(step, n, state, [], false).kept.map((e) => [e.source, e.up, e.down]);
}

/** The first n local edges, with what their downstream features do to the predicted tokens. */
export function drawn(step: StepAnswer, n: number, state: State, tokens: string[], mixes: boolean): Drawn {
  const edges = step.edges.edges.slice(0, n);
  const sourceId = (source: number, up: number) => `u${up}@${source}`;
  const firstOf = (some: LocalEdge[], id: (e: LocalEdge) => string) => [...new Map(some.map((e) => [id(e), e])).values()].slice(0, ROWS);
  const ofUp = (e: LocalEdge) => sourceId(e.source, e.up), ofDown = (e: LocalEdge) => `d${e.down}`;
  const ids = new Set([...firstOf(edges, ofUp).map(ofUp), ...firstOf(edges, ofDown).map(ofDown)]);
  const outputs = new Map(step.outputs.latents.map((one) => [one.latent, one]));
  const isPinned = (id: string) => state.pins.includes(id) || state.pins.some((other) => other.startsWith(`${id}-`) || other.endsWith(`-${id}`));
  const kept = edges.filter((e) => ids.has(ofUp(e)) && ids.has(ofDown(e)));
  const sources = firstOf(kept, ofUp), downs = firstOf(kept, ofDown);
  const links: Link[] = kept.map((e) => ({ from: ofUp(e), to: ofDown(e), weight: e.size, negative: e.effect < 0 }));
  const most = Math.max(...links.map((link) => link.weight), 1e-30);
  const logits = downs.flatMap((e) => outputs.get(e.down)?.logits.map((logit, i) => ({ e, logit, i })) ?? []);
  const strongest = Math.max(...logits.map(({ logit }) => Math.abs(logit)), 1e-30);
  links.push(...logits.map(({ e, logit, i }) => ({ from: `d${e.down}`, to: `t${i}`, weight: (most * Math.abs(logit)) / strongest, negative: logit < 0 })));
  const columns: Column[] = [
    {
      title: "Upstream",
      nodes: sources.map((e) => ({
        id: ofUp(e), label: nameOf(`u${e.up}`, state, step.labels) + (mixes ? ` @${e.source} ${token(tokens[e.source] ?? "")}` : ""),
        pinned: isPinned(`u${e.up}`), detail: `${detailOf(`u${e.up}`, step.labels)} Activation ${number(e.up_activation)} at token ${e.source}.`,
      })),
    },
    {
      title: "Downstream",
      nodes: downs.map((e) => {
        const output = outputs.get(e.down);
        return {
          id: ofDown(e), label: nameOf(`d${e.down}`, state, step.labels), pinned: isPinned(`d${e.down}`),
          detail: `${detailOf(`d${e.down}`, step.labels)} Activation ${number(e.down_activation)}.${output ? ` Removing it changes the prediction by ${number(output.kl)} nats.` : ""}`,
        };
      }),
    },
    {
      title: "Predicted",
      nodes: step.outputs.predicted.map((one, i) => ({ id: `t${i}`, label: `${token(one.text)} ${percent(one.p)}`, detail: `Probability ${number(one.p)} in the full circuit.` })),
    },
  ];
  return { columns, links, kept, left: edges.length - kept.length };
}

export function JourneyView({ state, pair, tokens, step }: { state: State; pair: Pair; tokens: Asked<TokensAnswer>; step: Asked<StepAnswer> }) {
  const answer = step.answer, curve = answer?.curve;
  const points = useMemo(() => curve?.edges.map((edges, i) => ({ edges, recovery: curve.recovery[i]! })) ?? [], [curve]);
  const n = state.local < 0 ? USUAL : state.local;
  const point = points[nearest(points, n)], edges = point?.edges ?? 0;
  const words = tokens.answer?.tokens ?? [];
  const found = useMemo(() => answer && drawn(answer, edges, state, words, pair.mixes), [answer, edges, state.names, state.pins, words]);
  const kl = curve?.kl_circuit[nearest(points, n)];
  return (
    <section aria-label="Journey">
      {tokens.answer && <TokenRow tokens={tokens.answer} at={state.at} onToken={(at) => set({ at, local: -1 })} />}
      {state.at < 0 && <p class="hint">Choose a token to see what leads to the prediction after it.</p>}
      {state.at >= 0 && <Waiting asked={step} what="edges at this token" />}
      {state.at >= 0 && answer && found && (
        <>
          {tokens.answer?.special[state.at] && <p class="hint">A special token keeps the model's own activation: it has no edges.</p>}
          {points.length > 1 && <Curve label="Local edges" points={points} n={edges} onCount={(local) => set({ local })} />}
          <p class="reading" role="status">
            <b id="n-local">{count(edges)}</b> of {some(points[points.length - 1]?.edges ?? 0, "local edge")} at token {state.at}
            {point && <>: they carry <b id="local-recovery">{percent(point.recovery)}</b> of the prediction after it, KL from the full circuit {number(kl)} nats.</>}
            {" "}{count(answer.edges.n_edges)} of all change a feature when they alone are removed
            {answer.edges.n_edges > answer.edges.edges.length ? `; the strongest ${count(answer.edges.edges.length)} are sent to this page.` : "."}
            {found.left > 0 && ` ${count(found.left)} are not drawn, for their features have no room.`}
          </p>
          <Columns columns={found.columns} links={found.links} focus={state.focus} label="Local edges to the prediction"
            onFocus={(id) => !id.startsWith("t") && set({ focus: id.replace(/@.*/, "") })} onPin={(id) => !id.startsWith("t") && pin(id.replace(/@.*/, ""))} />
          <p class="hint">Dashed lines inhibit. A line's width is the size of the effect when the edge, or the feature, is removed.</p>
        </>
      )}
    </section>
  );
}
