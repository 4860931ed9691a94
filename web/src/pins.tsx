/** What is pinned, its groups and names, and how much exactly these edges recover. */
import { useState } from "preact/hooks";
import type { Labels, Measured } from "./api";
import { live } from "./api";
import { useAnswer } from "./hooks";
import { nameOf } from "./labels";
import { Waiting } from "./parts";
import { pin, pinned, set, type State } from "./state";
import { count, number, percent, short, some } from "./text";

/** Of more groups than these the list is closed at first. */
const OPEN = 6;

export function Reading({ found, where, id }: { found: Measured; where: string; id: string }) {
  return (
    <p class="reading" id={id} data-recovery={found.recovery} data-edges={found.edges}>
      {some(found.edges, "edge")} recover <b>{percent(found.recovery)}</b> {where}: KL from the full circuit {number(found.kl_circuit)} nats,
      from the model {number(found.kl_model)} nats{found.faithfulness !== null && `, faithfulness ${percent(found.faithfulness)}`}.
    </p>
  );
}

export function Pins({ state, labels }: { state: State; labels?: Labels }) {
  const [chosen, setChosen] = useState<string[]>([]);
  const [heldOut, setHeldOut] = useState("");
  const about = { pair: state.pair, ranking: state.ranking, ...pinned(state.pins) };
  const any = state.pins.length > 0;
  const here = useAnswer("recovery", any && state.text ? { ...about, text: state.text } : null);
  const key = JSON.stringify(about);
  const there = useAnswer("held-out", any && heldOut === key ? about : null);
  const features = chosen.filter((id) => !id.includes("-") && state.pins.includes(id));
  return (
    <section aria-label="Pinned" id="pins">
      <h2>Pinned <small>{count(state.pins.length)}</small></h2>
      {!any && <p class="hint">Press p on a feature, or pin an edge from the list of a feature's edges.</p>}
      {any && (
        <>
          {here.answer && <Reading found={here.answer} where="on this prompt" id="recovery" />}
          <Waiting asked={here} what="recovery on this prompt" />
          {there.answer && heldOut === key && <Reading found={there.answer} where={`on ${some(there.answer.prompts ?? 0, "held-out prompt")}`} id="held-out" />}
          <Waiting asked={there} what="recovery on the held-out text" />
          <p class="row">
            {live && <button type="button" onClick={() => setHeldOut(key)}>Measure on the held-out text</button>}
            <button type="button" disabled={!features.length} onClick={() => {
              set({ groups: [...state.groups, { name: `group ${state.groups.length + 1}`, members: features }] });
              setChosen([]);
            }}>Group the chosen features</button>
            <button type="button" onClick={() => set({ pins: [] })}>Unpin all</button>
          </p>
          <ul class="pins">
            {state.pins.map((id) => <Pinned key={id} id={id} state={state} labels={labels} chosen={chosen.includes(id)}
              onChoose={() => setChosen(chosen.includes(id) ? chosen.filter((other) => other !== id) : [...chosen, id])} />)}
          </ul>
          <p class="hint">Kept are the pinned edges, and all edges from a pinned upstream to a pinned downstream feature.</p>
        </>
      )}
      {state.groups.length > 0 && (
        <details open={state.groups.length <= OPEN}>
          <summary>{some(state.groups.length, "group")} <button type="button" id="dissolve" onClick={() => set({ groups: [], focus: state.focus.startsWith("g") ? "" : state.focus })}>Dissolve all</button></summary>
          <ul class="pins">
            {state.groups.map((group, g) => (
              <li key={g}>
                <input aria-label={`Name of group ${g + 1}`} class="group-name" value={group.name} maxLength={200} onInput={(event) =>
                  set({ groups: state.groups.map((other, i) => (i === g ? { ...other, name: event.currentTarget.value } : other)) })} />
                <button type="button" class="words" onClick={() => set({ focus: `g${g}` })}>{some(group.members.length, "feature")}</button>
                <button type="button" aria-label={`Dissolve group ${g + 1}`} onClick={() => set({ groups: state.groups.filter((_, i) => i !== g), focus: "" })}>✕</button>
              </li>
            ))}
          </ul>
        </details>
      )}
    </section>
  );
}

function Pinned({ id, state, labels, chosen, onChoose }: { id: string; state: State; labels?: Labels; chosen: boolean; onChoose: () => void }) {
  const ends = id.split("-");
  const words = ends.map((end) => nameOf(end, state, labels)).join(" → ");
  return (
    <li data-pin={id}>
      {ends.length === 1 && <input type="checkbox" aria-label={`Choose ${words}`} checked={chosen} onChange={onChoose} />}
      <button type="button" class="words" onClick={() => set({ focus: id })}>{ends.length === 1 ? (id.startsWith("u") ? "up " : "down ") : ""}{short(words, 70)}</button>
      <button type="button" aria-label={`Unpin ${words}`} onClick={() => pin(id)}>✕</button>
    </li>
  );
}
