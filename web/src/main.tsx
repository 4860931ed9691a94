import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { live, LOADING, type Run } from "./api";
import { Chain } from "./chain";
import { Focus } from "./focus";
import { useAnswer } from "./hooks";
import { TestView } from "./interventions";
import { drawnEdges, JourneyView } from "./journey";
import { MapView } from "./map";
import { Waiting } from "./parts";
import { Pins } from "./pins";
import { Prompt } from "./prompt";
import { Share } from "./share";
import { choosePair, onChange, set, state as now, type State, type View } from "./state";
import { short } from "./text";
import "./style.css";

const VIEWS: Record<View, string> = { map: "Map", journey: "Journey", test: "Test" };

function Page({ run }: { run: Run }) {
  const [state, follow] = useState<State>(now);
  useEffect(() => onChange(follow), []);
  const pair = run.pairs.find((one) => one.key === state.pair) ?? run.pairs[0]!;
  const ranking = pair.rankings.includes(state.ranking) ? state.ranking : pair.rankings[0]!;
  useEffect(() => {
    if (pair.key !== state.pair || ranking !== state.ranking) set({ pair: pair.key, ranking });
  }, [pair.key, ranking, state.pair, state.ranking]);
  const ready = pair.key === state.pair && ranking === state.ranking;
  const about = { pair: pair.key, ranking };
  const map = useAnswer("map", ready ? about : null);
  const tokens = useAnswer("tokens", ready && state.text ? { ...about, text: state.text } : null);
  const examples = useAnswer("examples", ready ? about : null);
  const loading = [tokens, examples].some((asked) => asked.progress === LOADING);
  const length = tokens.progress === undefined ? tokens.answer?.tokens.length ?? 0 : 0; // not of the prompt before
  const step = useAnswer("step", ready && state.view === "journey" && state.at >= 0 && state.at < length ? { ...about, text: state.text, position: state.at } : null);
  const labels = map.answer?.labels;
  return (
    <>
      <header>
        <h1>{short(run.name, 40)} <small>{short(run.lm, 40)}</small></h1>
        <label>Pair <select id="pair" value={pair.key} onChange={(event) => choosePair(event.currentTarget.value)}>
          {run.pairs.map((one) => <option key={one.key} value={one.key}>{one.block}, {one.method}{one.records ? "" : " (not scored)"}</option>)}
        </select></label>
        <label>Ranking <select id="ranking" value={ranking} onChange={(event) => set({ ranking: event.currentTarget.value })}>
          {pair.rankings.map((name) => <option key={name} value={name}>{name}</option>)}
        </select></label>
        <nav role="tablist" aria-label="Views">
          {(Object.keys(VIEWS) as View[]).map((view) => (
            <button key={view} type="button" role="tab" id={`view-${view}`} aria-selected={state.view === view} onClick={() => set({ view })}>{VIEWS[view]}</button>
          ))}
        </nav>
        <Share state={state} drawn={state.view === "journey" && state.at >= 0 && step.answer ? drawnEdges(step.answer, state) : undefined} />
      </header>
      {!live && <p class="banner" role="note">This page was exported from scalar explore. It shows what was looked at before; nothing new can be computed here.</p>}
      <main>
        <div class="view">
          {state.view !== "map" && <Prompt state={state} tokens={tokens} examples={examples} />}
          {state.view === "map" && <Waiting asked={map} what="ranking the edges of this pair, which is done once and kept" />}
          {state.view === "map" && map.answer && <MapView map={map.answer} state={state} />}
          {state.view === "journey" && <JourneyView state={state} pair={pair} tokens={tokens} step={step} />}
          {state.view === "test" && <TestView state={state} labels={labels} tokens={tokens} />}
        </div>
        <aside>
          {state.view === "map" && <details open={state.pins.length > 0 && !state.text}><summary>Prompt: {state.text ? `“${short(state.text, 40)}”` : "none yet"}{loading && <span id="loading" role="status"> (the language model is being loaded)</span>}</summary><Prompt state={state} tokens={tokens} examples={examples} /></details>}
          <Pins state={state} labels={labels} />
          <Chain state={state} pairs={run.pairs} />
          <Focus state={state} map={map.answer} step={step.answer} mixes={pair.mixes} judge={run.judge} />
        </aside>
      </main>
      <footer><p>Keys: Tab and arrows move, Enter opens a feature, p pins it. scalar-sae {run.version}.</p></footer>
    </>
  );
}

/** The page, once the server has loaded what it is about. */
function Opening() {
  const asked = useAnswer("run", {});
  const name = asked.answer?.name;
  useEffect(() => {
    if (name !== undefined) document.title = `${short(name, 40)}: explorer`;
  }, [name]);
  if (asked.answer) return <Page run={asked.answer} />;
  return <main class="opening"><Waiting asked={asked} what="loading the language model and the SAEs, which takes a few seconds" /></main>;
}

const root = document.getElementById("page");
if (root) render(<Opening />, root);
