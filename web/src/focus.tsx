/** The feature that is looked at: its card, its name, and its edges on the map. */
import type { CardAnswer, Labels, MapAnswer, StepAnswer } from "./api";
import { Card } from "./card";
import { useAnswer } from "./hooks";
import { EdgePanel } from "./edge";
import { detailOf, nameOf } from "./labels";
import { Waiting } from "./parts";
import { Explain } from "./explain";
import { edgeId, pin, pinned, set, type State } from "./state";
import { count, number, short } from "./text";

const LISTED = 40;

export function Focus({ state, map, step, mixes, judge }: { state: State; map?: MapAnswer; step?: StepAnswer; mixes: boolean; judge: string | null }) {
  const id = state.focus, labels = step && state.view !== "map" ? step.labels : map?.labels;
  const feature = /^[ud]\d+$/.test(id);
  const card = useAnswer("card", feature ? { pair: state.pair, end: id.startsWith("u") ? "up" : "down", latent: Number(id.slice(1)) } : null);
  if (!id) return null;
  if (id.includes("-")) return <EdgePanel state={state} labels={labels} mixes={mixes} judge={judge} />;
  if (!feature) return <GroupPanel state={state} labels={labels} judge={judge} />;
  const pinnedHere = state.pins.includes(id);
  return (
    <section aria-label="Feature" id="feature">
      <h2>{nameOf(id, state, labels)}</h2>
      <p>{detailOf(id, labels)}</p>
      <p class="row">
        <label>Name <input id="name" maxLength={200} value={state.names[id] ?? ""} onInput={(event) => {
          const { [id]: _, ...others } = state.names, name = event.currentTarget.value;
          set({ names: name ? { ...others, [id]: name } : others });
        }} /></label>
        <button type="button" onClick={() => pin(id)}>{pinnedHere ? "Unpin" : "Pin"}</button>
        <button type="button" onClick={() => set({ view: "test", changes: [...state.changes, { [id.startsWith("u") ? "up" : "down"]: Number(id.slice(1)), factor: 0 }] })}>Remove it</button>
      </p>
      <Edges state={state} map={map} step={state.view === "map" ? undefined : step} labels={labels} />
      <Waiting asked={card} what="card" />
      {card.answer && (card.answer.missing ? <p class="hint">No card: scalar features writes the tables that it is made of.</p> : <FoundCard found={card.answer} />)}
    </section>
  );
}

function FoundCard({ found }: { found: CardAnswer }) {
  return <Card card={found} density={found.density} maximum={found.maximum} octaves={found.octave_of} lengths={found.lengths}
    text={(id) => found.vocabulary[id] ?? `#${id}`} />;
}

/** The edges of the feature: at the token of the journey, or on the map. */
function Edges({ state, map, step, labels }: { state: State; map?: MapAnswer; step?: StepAnswer; labels?: Labels }) {
  const latent = Number(state.focus.slice(1)), up = state.focus.startsWith("u");
  const found: { other: number; value: number; source?: number }[] = step
    ? step.edges.edges.filter((e) => (up ? e.up : e.down) === latent).map((e) => ({ other: up ? e.down : e.up, value: e.effect, source: e.source }))
    : (map?.edges ?? []).filter(([i, j]) => (up ? i : j) === latent).map(([i, j, weight]) => ({ other: up ? j : i, value: weight }));
  if (!found.length) return <p class="hint">No edges {step ? "at this token" : "among the strongest"}.</p>;
  return (
    <table class="edges">
      <caption>{up ? "Edges to" : "Edges from"}, strongest first{found.length > LISTED && `: ${LISTED} of ${count(found.length)}`}</caption>
      <tbody>
        {found.slice(0, LISTED).map(({ other, value, source }) => {
          const end = `${up ? "d" : "u"}${other}`, id = up ? edgeId(latent, other) : edgeId(other, latent);
          const words = nameOf(end, state, labels);
          return (
            <tr key={`${id} ${source}`}>
              <td><button type="button" class="words" onClick={() => set({ focus: end })}>{short(words, 44)}</button></td>
              {source !== undefined && <td>at {source}</td>}
              <td class="number">{number(value)}</td>
              <td><button type="button" data-edge={id} aria-pressed={state.pins.includes(id)} aria-label={`Pin the edge with ${words}`} onClick={() => pin(id)}>{state.pins.includes(id) ? "Unpin" : "Pin"}</button></td>
              <td><button type="button" data-open={id} aria-label={`When does the edge with ${words} matter?`} onClick={() => set({ focus: id })}>When</button></td>
              <td><button type="button" aria-label={`Remove the edge with ${words}`} onClick={() => set({
                view: "test", changes: [...state.changes, up ? { up: latent, down: other, factor: 0 } : { up: other, down: latent, factor: 0 }],
              })}>Cut</button></td>
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}

function GroupPanel({ state, labels, judge }: { state: State; labels?: Labels; judge: string | null }) {
  const at = Number(state.focus.slice(1)), group = state.groups[at];
  if (!group) return null;
  const { up, down } = pinned(group.members);
  const about = { pair: state.pair, ranking: state.ranking, up, down };
  return (
    <section aria-label="Group" id="feature">
      <h2>{nameOf(state.focus, state)}</h2>
      <Explain about={about} judge={judge} onName={(name) => set({ groups: state.groups.map((other, i) => (i === at ? { ...other, name } : other)) })} />
      <ul class="pins">{group.members.map((id) => <li key={id}><button type="button" class="words" onClick={() => set({ focus: id })}>{id.startsWith("u") ? "up " : "down "}{nameOf(id, state, labels)}</button></li>)}</ul>
      <p class="hint">The line of a group is as wide as that of its members' strongest edge.</p>
    </section>
  );
}
