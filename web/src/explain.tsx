/** What a judge says of an edge or of a group, and how well its words tell where they are active. */
import { useState } from "preact/hooks";
import { here, live } from "./api";
import { useAnswer } from "./hooks";
import { Waiting } from "./parts";
import { number } from "./text";

export function Explain({ about, judge, onName }: { about: object; judge: string | null; onName?: (words: string) => void }) {
  const [wanted, setWanted] = useState("");
  const key = JSON.stringify(about);
  const asked = useAnswer("explain", wanted === key || here("explain", about) ? about : null);
  const found = here("explain", about);
  if (!found && !judge) return <p class="hint" id="no-judge">Nobody explains this in words: scalar explore --judge names a language model that does.</p>;
  return (
    <div id="explanation">
      {found && (
        <p data-detection={found.detection}>{found.judge}: {found.explanation === null ? "too few examples to explain it and to test that." : <>
          <q id="explained">{found.explanation}</q> From these words alone it tells where this is active on prompts that it was not shown: detection {number(found.detection)}, fuzzing {number(found.fuzzing)} (guessing: 0.5).</>}
          {found.explanation !== null && onName && <> <button type="button" id="name-so" onClick={() => onName(found.explanation!)}>Name it so</button></>}
        </p>
      )}
      {!found && live && asked.progress === undefined && !asked.error && <button type="button" id="explain" onClick={() => setWanted(key)}>Have {judge} explain it</button>}
      <Waiting asked={asked} what={`what ${judge} says`} />
    </div>
  );
}
