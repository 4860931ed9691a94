/** The panel of an edge: on which prompts it matters, and at a block with attention what carries it. */
import type { EdgeAnswer, Labels } from "./api";
import { Explain } from "./explain";
import { useAnswer } from "./hooks";
import { nameOf } from "./labels";
import { Waiting } from "./parts";
import { pin, set, type State } from "./state";
import { number, percent, some, token } from "./text";

export function EdgePanel({ state, labels, mixes, judge }: { state: State; labels?: Labels; mixes: boolean; judge: string | null }) {
  const [from, to] = state.focus.split("-") as [string, string];
  const edge = { up: Number(from.slice(1)), down: Number(to.slice(1)) };
  const about = { pair: state.pair, ranking: state.ranking };
  const examples = useAnswer("edge", { ...about, ...edge });
  const parts = useAnswer("split", mixes && state.view === "journey" && state.at >= 0 ? { ...about, text: state.text, position: state.at, ...edge } : null);
  return (
    <section aria-label="Edge" id="feature">
      <h2>{nameOf(from, state, labels)} → {nameOf(to, state, labels)}</h2>
      <p class="row">
        <button type="button" onClick={() => pin(state.focus)}>{state.pins.includes(state.focus) ? "Unpin" : "Pin"}</button>
        <button type="button" onClick={() => set({ view: "test", changes: [...state.changes, { ...edge, factor: 0 }] })}>Cut it</button>
        <button type="button" onClick={() => set({ focus: from })}>Upstream feature</button>
        <button type="button" onClick={() => set({ focus: to })}>Downstream feature</button>
      </p>
      <Explain about={{ ...about, edge: [edge.up, edge.down] }} judge={judge} />
      {parts.answer && (
        <table>
          <caption>What carries it to token {state.at}: effect {number(parts.answer.effect)}, the sum of</caption>
          <tbody>{parts.answer.parts.slice(0, 20).map((part) => (
            <tr key={`${part.source} ${part.head}`}><td>token {part.source}</td><td>{part.head === null ? "past attention" : `head ${part.head}`}</td><td class="number">{number(part.effect)}</td></tr>
          ))}</tbody>
        </table>
      )}
      <Waiting asked={parts} what="heads" />
      <h3>When it matters</h3>
      <Waiting asked={examples} what="prompts of the text" />
      {examples.answer && <Examples found={examples.answer} />}
    </section>
  );
}

function Examples({ found }: { found: EdgeAnswer }) {
  return (
    <>
      <p id="edge-kl" data-kl={found.kl}>Cutting it changes the prediction by {number(found.kl)} nats a token, and changes the downstream feature
        in {found.n_reached} of {some(found.n_prompts, "prompt")}. Over prompts: {found.levels.map((level, i) => `${percent(level)}: ${number(found.quantiles[i])}`).join(", ")} nats.</p>
      {found.examples.filter((one) => one.kl > 0).map((one) => (
        <div key={one.prompt} class="example">
          <p class="row"><span>{number(one.kl)} nats; {number(one.effect)} at token {one.position}</span>
            <button type="button" onClick={() => set({ view: "journey", text: one.text, at: one.position, local: -1 })}>Go there</button></p>
          <pre class="context">{one.tokens.map((text, i) => <span key={i} class={i === one.position ? "at" : ""}>{text === "" ? token("") : text}</span>)}</pre>
        </div>
      ))}
    </>
  );
}
