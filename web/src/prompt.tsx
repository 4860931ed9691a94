/** The prompt: its text, and its tokens in a row. */
import { useEffect, useState } from "preact/hooks";
import type { TokensAnswer } from "./api";
import type { Asked } from "./hooks";
import { Waiting } from "./parts";
import { set, type State } from "./state";
import { short, token } from "./text";

export function Prompt({ state, tokens, examples }: { state: State; tokens: Asked<TokensAnswer>; examples: Asked<string[]> }) {
  const [draft, setDraft] = useState(state.text);
  useEffect(() => setDraft(state.text), [state.text]);
  useEffect(() => {
    if (!state.text && examples.answer?.[0]) set({ text: examples.answer[0] });
  }, [state.text, examples.answer]);
  return (
    <div class="prompt">
      <label for="text">Prompt</label>
      <textarea id="text" rows={2} maxLength={20000} value={draft} spellcheck={false} onInput={(event) => setDraft(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) set({ text: draft, at: -1, local: -1 });
        }} />
      <p class="row">
        <button type="button" id="read" onClick={() => set({ text: draft, at: -1, local: -1 })}>Read it</button>
        <label>or one of the text <select id="example" value="" onChange={(event) => {
          const text = examples.answer?.[Number(event.currentTarget.value)];
          if (text !== undefined) set({ text, at: -1, local: -1 });
        }}>
          <option value="">choose</option>
          {examples.answer?.map((text, i) => <option key={i} value={i}>{short(text, 50)}</option>)}
        </select></label>
      </p>
      <Waiting asked={examples} what="prompts of the text" />
      <Waiting asked={tokens} what="tokens" />
    </div>
  );
}

/** The tokens as buttons; arrows go from one to the next. */
export function TokenRow({ tokens, at, onToken }: { tokens: TokensAnswer; at: number; onToken: (position: number) => void }) {
  function onKeyDown(event: KeyboardEvent) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const next = step && (event.target as HTMLElement).parentElement?.children[at + step];
    if (!step || !(next instanceof HTMLElement)) return;
    event.preventDefault();
    next.focus();
    onToken(at + step);
  }
  return (
    <div class="tokens" role="group" aria-label="Tokens" onKeyDown={onKeyDown}>
      {tokens.tokens.map((text, i) => (
        <button key={i} type="button" data-token={i} tabIndex={i === at ? 0 : -1} aria-pressed={i === at} class={tokens.special[i] ? "special" : ""}
          title={`token ${i}${tokens.special[i] ? ", special: it has no edges" : ""}`} onClick={() => onToken(i)}>{token(text)}</button>
      ))}
    </div>
  );
}
