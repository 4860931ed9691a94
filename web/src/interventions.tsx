/** Interventions: what is removed or scaled, the prediction before and after, and a list of what was tried. */
import { useState } from "preact/hooks";
import type { Intervention, Labels, TokensAnswer } from "./api";
import { useAnswer, type Asked } from "./hooks";
import { nameOf } from "./labels";
import { Waiting } from "./parts";
import { TokenRow } from "./prompt";
import { set, type State } from "./state";
import { number, percent, short, some, token } from "./text";

/** An intervention in words. */
export function said(one: Intervention, state: State, labels?: Labels): string {
  const ends = [one.up === undefined ? "" : nameOf(`u${one.up}`, state, labels), one.down === undefined ? "" : nameOf(`d${one.down}`, state, labels)];
  const what = ends[0] && ends[1] ? `edge ${ends[0]} → ${ends[1]}` : ends[0] ? `upstream ${ends[0]}` : `downstream ${ends[1]}`;
  const how = one.factor === 0 ? "remove" : `× ${number(one.factor)}`;
  return `${how} ${what}${one.positions ? ` at token ${one.positions.join(", ")}` : " everywhere"}`;
}

export function TestView({ state, labels, tokens }: { state: State; labels?: Labels; tokens: Asked<TokensAnswer> }) {
  const last = (tokens.answer?.tokens.length ?? 0) - 1;
  const at = state.at < 0 ? last : Math.min(state.at, last);
  const body = state.changes.length && tokens.progress === undefined && at >= 0
    ? { pair: state.pair, ranking: state.ranking, text: state.text, position: at, interventions: state.changes } : null;
  const change = useAnswer("change", body);
  return (
    <section aria-label="Interventions">
      {tokens.answer && <TokenRow tokens={tokens.answer} at={at} onToken={(position) => set({ at: position })} />}
      <Add state={state} at={at} />
      <ul class="pins" id="changes">
        {state.changes.map((one, i) => (
          <li key={i}>
            <span class="words">{said(one, state, labels)}{change.answer && change.answer.reached[i] === 0 && <em> (reaches nothing here)</em>}</span>
            <label>× <input type="number" step="0.5" aria-label="factor" value={one.factor} onChange={(event) => replace(i, { ...one, factor: Number(event.currentTarget.value) || 0 })} /></label>
            <button type="button" aria-pressed={one.positions !== undefined} onClick={() => {
              const { positions, ...everywhere } = one;
              replace(i, positions ? everywhere : { ...one, positions: [at] });
            }}>{one.positions ? "everywhere" : "only at this token"}</button>
            <button type="button" aria-label="Take back" onClick={() => set({ changes: state.changes.filter((_, j) => j !== i) })}>✕</button>
          </li>
        ))}
      </ul>
      <Waiting asked={change} what="prediction" />
      {body && change.answer && (
        <>
          <p class="reading" role="status">After token {at} the prediction changes by <b id="change-kl" data-kl={change.answer.kl}>{number(change.answer.kl)}</b> nats; by {number(change.answer.kl_mean)} nats in the mean over the prompt.
            {" "}<button type="button" id="keep" onClick={() => set({ tried: [...state.tried, { changes: state.changes, text: state.text, at, kl: change.answer!.kl }] })}>Keep in the list</button></p>
          <table id="change" class="bars">
            <caption>Next token, largest change first</caption>
            <thead><tr><th scope="col">token</th><th scope="col">before</th><th scope="col">after</th><th scope="col">logit change</th></tr></thead>
            <tbody>{change.answer.next_tokens.map((row) => (
              <tr key={row.token} data-token-id={row.token}>
                <th scope="row"><code>{token(row.text)}</code></th>
                <td data-p={row.p}><meter min={0} max={1} value={row.p} aria-hidden="true" /> {percent(row.p)}</td>
                <td data-p={row.p_after}><meter min={0} max={1} value={row.p_after} aria-hidden="true" /> {percent(row.p_after)}</td>
                <td class="number">{row.change > 0 ? "+" : ""}{number(row.change)}</td>
              </tr>
            ))}</tbody>
          </table>
        </>
      )}
      {!state.changes.length && <p class="hint">Remove a feature or cut an edge from its panel, or name it above.</p>}
      <TriedList state={state} labels={labels} />
    </section>
  );

  function replace(i: number, one: Intervention) {
    set({ changes: state.changes.map((other, j) => (j === i ? one : other)) });
  }
}

/** A form that names a feature or an edge. */
function Add({ state, at }: { state: State; at: number }) {
  const [up, setUp] = useState(""), [down, setDown] = useState(""), [factor, setFactor] = useState("0"), [here, setHere] = useState(false);
  return (
    <form class="row" onSubmit={(event) => {
      event.preventDefault();
      const one: Intervention = { factor: Number(factor) || 0 };
      if (up !== "") one.up = Number(up);
      if (down !== "") one.down = Number(down);
      if (here) one.positions = [at];
      if (up !== "" || down !== "") set({ changes: [...state.changes, one] });
    }}>
      <label>upstream <input type="number" id="add-up" min={0} step={1} value={up} onInput={(event) => setUp(event.currentTarget.value)} /></label>
      <label>downstream <input type="number" id="add-down" min={0} step={1} value={down} onInput={(event) => setDown(event.currentTarget.value)} /></label>
      <label>factor <input type="number" id="add-factor" step="any" value={factor} onInput={(event) => setFactor(event.currentTarget.value)} /></label>
      <label><input type="checkbox" checked={here} onChange={() => setHere(!here)} /> only at this token</label>
      <button type="submit" id="add">Change it</button>
    </form>
  );
}

function TriedList({ state, labels }: { state: State; labels?: Labels }) {
  if (!state.tried.length) return null;
  return (
    <>
      <h3>Tried</h3>
      <ul class="pins" id="tried">
        {state.tried.map((one, i) => (
          <li key={i}>
            <span class="words">{one.changes.map((each) => said(each, state, labels)).join("; ")} on “{short(one.text, 30)}” at token {one.at}: {number(one.kl)} nats</span>
            <button type="button" onClick={() => set({ changes: one.changes })}>Replay on this prompt</button>
            <button type="button" onClick={() => set({ changes: one.changes, text: one.text, at: one.at })}>Go back to it</button>
            <button type="button" aria-label="Forget" onClick={() => set({ tried: state.tried.filter((_, j) => j !== i) })}>✕</button>
          </li>
        ))}
      </ul>
      <p class="hint">{some(state.tried.length, "trial")}, kept in the address of this page.</p>
    </>
  );
}
