/** Small parts that several views have. */
import type { Asked } from "./hooks";
import { live, LOADING } from "./api";
import { percent } from "./text";

/** How far an answer is, with a button that stops it; or why there is none. */
export function Waiting({ asked, what }: { asked: Asked<unknown>; what: string }) {
  if (asked.error) return <p class="error" role="alert">{asked.error} {live && <button type="button" class="again" onClick={asked.again}>Try again</button>}</p>;
  if (asked.progress === undefined) return null;
  const words = asked.progress === LOADING ? `waiting for the language model, which is being loaded: ${what}` : what;
  return (
    <p class="waiting" role="status">
      <progress value={asked.progress > 0 ? asked.progress : undefined} max={1} aria-label={words} /> {words}
      {asked.progress > 0 && ` ${percent(asked.progress)}`} <button type="button" onClick={asked.stop}>Stop</button>
    </p>
  );
}
