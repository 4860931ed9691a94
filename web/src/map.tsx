/** The map of a pair: its strongest edges, and what they recover. */
import { useMemo, useState } from "preact/hooks";
import { ask, live, LOADING, type Label, type MapAnswer } from "./api";
import { Columns, type Column, type Link } from "./columns";
import { Curve, nearest } from "./curve";
import { detailOf, nameOf } from "./labels";
import { pin, set, state as now, type Sort, type State } from "./state";
import { count, number, percent, some } from "./text";

const ROWS = 150, GROUPS = 100;
const SORTS: Record<Sort, string> = { edges: "most edges", effect: "strongest edge", density: "most frequent", number: "number" };

export interface Gathered { columns: Column[]; links: Link[]; drawn: number; shown: number }

/** The nodes and links of the first n edges, grouped, searched, sorted and cut. */
export function gathered(map: MapAnswer, n: number, state: State): Gathered {
  const groupOf = new Map(state.groups.flatMap((group, g) => group.members.map((id) => [id, `g${g}`] as const)));
  const nodeOf = (id: string) => (groupOf.has(id) ? `${groupOf.get(id)}${id[0]}` : id);
  const wanted = state.query.trim().toLowerCase();
  const hits = new Map<string, boolean>();
  const matches = (id: string) => {
    if (!wanted) return true;
    if (!hits.has(id)) {
      const label: Label | undefined = map.labels[id[0] === "u" ? "up" : "down"][Number(id.slice(1))];
      const words = [id.slice(1), id, state.names[id] ?? "", ...(label?.tokens ?? []), ...(label?.promotes ?? [])];
      hits.set(id, words.some((word) => word.toLowerCase().includes(wanted)));
    }
    return hits.get(id)!;
  };
  const links = new Map<string, Link>(), nodes = new Map<string, { edges: number; effect: number }>();
  let shown = 0;
  for (const [up, down, weight] of map.edges.slice(0, n)) {
    const ends = [`u${up}`, `d${down}`];
    if (!ends.some(matches)) continue;
    shown += 1;
    const [from, to] = ends.map(nodeOf) as [string, string];
    const link = links.get(`${from} ${to}`);
    if (link) link.weight = Math.max(link.weight, weight);
    else links.set(`${from} ${to}`, { from, to, weight });
    for (const id of [from, to]) {
      const node = nodes.get(id) ?? { edges: 0, effect: 0 };
      nodes.set(id, { edges: node.edges + 1, effect: Math.max(node.effect, weight) });
    }
  }
  const density = (id: string) => (id.startsWith("g") ? Infinity : map.labels[id[0] === "u" ? "up" : "down"][Number(id.slice(1))]?.density ?? 0);
  const key = (id: string): number => ({
    edges: -nodes.get(id)!.edges, effect: -nodes.get(id)!.effect, density: -density(id), number: id.startsWith("g") ? -1 : Number(id.slice(1)),
  })[state.sort];
  const placed = new Set<string>();
  const columns = (["u", "d"] as const).map((end) => {
    const all = [...nodes.keys()].filter((id) => (id.startsWith("g") ? id.endsWith(end) : id.startsWith(end)));
    all.sort((a, b) => key(a) - key(b) || Number(a.slice(1)) - Number(b.slice(1)));
    const cut = all.slice(0, ROWS);
    cut.forEach((id) => placed.add(id));
    const rest = all.length - cut.length;
    return {
      title: `${end === "u" ? "Upstream" : "Downstream"}: ${some(all.length, state.groups.length ? "node" : "feature")}`,
      nodes: cut.map((id) => {
        const { edges, effect } = nodes.get(id)!;
        const detail = id.startsWith("g") ? "A group." : detailOf(id, map.labels);
        const isPinned = state.pins.includes(id) || state.pins.some((other) => other.startsWith(`${id}-`) || other.endsWith(`-${id}`));
        return { id, label: nameOf(id, state, map.labels), pinned: isPinned, detail: `${detail} ${some(edges, "edge")} here, the strongest ${number(effect)}.` };
      }),
      note: rest ? `${count(rest)} more, not drawn: search, or take fewer edges` : undefined,
    };
  });
  const kept = [...links.values()].filter((link) => placed.has(link.from) && placed.has(link.to));
  return { columns, links: kept, drawn: kept.length, shown };
}

export function MapView({ map, state }: { map: MapAnswer; state: State }) {
  const counts = map.curve.length ? map.curve : powers(map.edges.length);
  const n = state.n < 0 ? Math.min(64, map.edges.length) : state.n;
  const point = map.curve[nearest(counts, n)];
  const edges = counts[nearest(counts, n)]?.edges ?? 0;
  const sent = Math.min(edges, map.edges.length);
  const found = useMemo(() => gathered(map, sent, state), [map, sent, state.query, state.sort, state.groups, state.names, state.pins]);
  return (
    <section aria-label="Map">
      <div class="controls">
        {map.curve.length > 0
          ? <Curve label="Edges on the map" n={edges} onCount={(value) => set({ n: value })}
              points={map.curve.map((p) => ({ edges: p.edges, recovery: p.recovery, low: p.recovery_low, high: p.recovery_high }))} />
          : <input type="range" aria-label="Edges on the map" min={0} max={counts.length - 1} value={nearest(counts, n)}
              onInput={(event) => set({ n: counts[Number(event.currentTarget.value)]!.edges })} />}
        <p class="reading" role="status">
          <b id="n-edges">{count(edges)}</b> of {count(map.n_edges)} edges
          {point && <>: recovery <b id="map-recovery">{percent(point.recovery)}</b>
            {point.recovery_low !== null && ` [${percent(point.recovery_low)}, ${percent(point.recovery_high!)}]`},
            faithfulness <b id="map-faithfulness">{percent(point.faithfulness)}</b>, KL from the full circuit <b id="map-kl-circuit">{number(point.kl_circuit)}</b> nats,
            from the model <b id="map-kl-model">{number(point.kl_model)}</b> nats, {number(point.live_edges)} live edges a token.</>}
          {!point && ". There is no record of this pair, so nothing says what they recover: scalar score makes one."}
          {edges > sent && ` The strongest ${count(sent)} edges are sent to this page; ${count(edges - sent)} more are not.`}
          {found.drawn < found.shown && ` ${count(found.drawn)} lines are drawn for ${some(found.shown, "edge")}.`}
        </p>
        <p class="row">
          <label>Search <input type="search" id="search" value={state.query} placeholder="number, token or name" onInput={(event) => set({ query: event.currentTarget.value })} /></label>
          <label>Sort by <select id="sort" value={state.sort} onChange={(event) => set({ sort: event.currentTarget.value as Sort })}>
            {Object.entries(SORTS).map(([key, words]) => <option key={key} value={key}>{words}</option>)}
          </select></label>
          {live && <Cluster map={map} edges={sent} state={state} />}
        </p>
        {!map.described && <p class="hint">Features have no words here: scalar features writes the tables that hold them.</p>}
      </div>
      {found.links.length
        ? <Columns columns={found.columns} links={found.links} focus={focusOn(state)} label="Edges between upstream and downstream features"
            onFocus={(id) => set({ focus: id.startsWith("g") ? id.slice(0, -1) : id })} onPin={(id) => !id.startsWith("g") && pin(id)} />
        : <p class="hint">{state.query ? "No feature matches." : "No edges: move the slider to the right."}</p>}
    </section>
  );
}

/** Groups the drawn features whose attribution profiles are alike. Those that stand in a group stay there. */
function Cluster({ map, edges, state }: { map: MapAnswer; edges: number; state: State }) {
  const [alike, setAlike] = useState(0.7), [note, setNote] = useState("");
  const cluster = async () => {
    const onProgress = (share: number) => setNote(share === LOADING ? "Waiting for the language model, which is being loaded." : "");
    const found = await ask("groups", { pair: state.pair, ranking: state.ranking, edges, alike }, undefined, onProgress);
    const taken = new Set(now().groups.flatMap((group) => group.members));
    const fresh = found.map(({ members }) => members.filter((id) => !taken.has(id))).filter((members) => members.length > 1).slice(0, GROUPS);
    set({ groups: [...now().groups, ...fresh.map((members) => ({ name: `${nameOf(members[0]!, state, map.labels)} +${members.length - 1}`, members }))] });
    setNote(fresh.length ? `${some(fresh.length, "new group")}.` : "No features are so alike.");
  };
  return (
    <>
      <label>Group features alike by <select id="alike" value={alike} onChange={(event) => setAlike(Number(event.currentTarget.value))}>
        {[0.5, 0.7, 0.9, 0.99].map((value) => <option key={value} value={value}>{value}</option>)}
      </select></label>
      <button type="button" id="cluster" title="Cosine between the weights of two features' edges to all others" onClick={() => {
        setNote("");
        cluster().catch((error: Error) => setNote(error.message));
      }}>Group by profile</button>
      <span role="status">{note}</span>
    </>
  );
}

const focusOn = (state: State) => (state.focus.startsWith("g") ? `${state.focus}u` : state.focus);

function powers(most: number): { edges: number }[] {
  const found = [{ edges: 0 }];
  for (let n = 1; n < most; n *= 2) found.push({ edges: n });
  return [...found, { edges: most }];
}
