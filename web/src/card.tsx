/** The card of a feature: where it is active, what it does to the logits, its strongest edges. */
import type { CardAnswer, Example } from "./api";
import { number, percent, short, token } from "./text";

const KINDS: [string, string][] = [
  ["top", "Strongest"], ["random", "At random"], ["band", "One at random of each power of two, from weak to strong"],
];

export function Card({ card }: { card: CardAnswer }) {
  const text = (id: number) => card.vocabulary[id] ?? `#${id}`;
  const examples = (kind: string) => card.examples.filter((one) => one.kind === kind);
  return (
    <div class="card">
      <p>Active at {percent(card.density)} of tokens, at most {number(card.maximum)}.
        {card.rule_tokens.length > 0 && <> A rule of {card.lengths[card.rule_f1.length - 1]} tokens tells it with F1 {number(card.rule_f1[card.rule_f1.length - 1])}: {card.rule_tokens.map((id) => <Word key={id} text={text(id)} />)}</>}
      </p>
      {card.judged.map((judged, i) => judged.explanation !== null && <p key={i}>{short(judged.judge.model)}: {short(judged.explanation, 400)} (detection {number(judged.detection)}, fuzzing {number(judged.fuzzing)})</p>)}
      <Histogram octaves={card.octaves} starts={card.octave_of} />
      <div class="side">
        <Logits title="Promotes" ids={card.promoted} by={card.promoted_by} text={text} />
        <Logits title="Suppresses" ids={card.suppressed} by={card.suppressed_by} text={text} />
      </div>
      {KINDS.map(([kind, title]) => examples(kind).length > 0 && (
        <div key={kind}>
          <h3>{title}</h3>
          {examples(kind).map((example, i) => <Context key={i} example={example} text={text} most={card.maximum || 1} />)}
        </div>
      ))}
    </div>
  );
}

const Word = ({ text }: { text: string }) => <code>{token(text)}</code>;

function Histogram({ octaves, starts }: { octaves: number[]; starts: number[] }) {
  const most = Math.max(...octaves, 1);
  const from = octaves.findIndex((n) => n > 0);
  if (from < 0) return null;
  const shown = octaves.slice(from, octaves.length - [...octaves].reverse().findIndex((n) => n > 0));
  const says = shown.map((n, i) => `from ${number(starts[from + i])}: ${n}`).join("; ");
  return (
    <svg class="histogram" width={shown.length * 16} height={54} role="img" aria-label={`Activations by powers of two, ${says}`}>
      {shown.map((n, i) => <rect key={i} x={i * 16} width={14} y={52 - (50 * Math.log1p(n)) / Math.log1p(most)} height={2 + (50 * Math.log1p(n)) / Math.log1p(most)}><title>{`from ${number(starts[from + i])}: ${n}`}</title></rect>)}
    </svg>
  );
}

function Logits({ title, ids, by, text }: { title: string; ids: number[]; by: number[]; text: (id: number) => string }) {
  if (!ids.length) return null;
  return <table><caption>{title} (logits)</caption><tbody>{ids.slice(0, 8).map((id, i) => <tr key={id}><td><Word text={text(id)} /></td><td>{number(by[i])}</td></tr>)}</tbody></table>;
}

function Context({ example, text, most }: { example: Example; text: (id: number) => string; most: number }) {
  return (
    <pre class="context">
      {example.tokens.map((id, i) => {
        const act = example.acts[i] ?? 0;
        const level = act > 0 ? Math.max(1, Math.ceil((8 * act) / most)) : 0;
        return <span key={i} class={`act${Math.min(8, level)}${i === example.position - example.start ? " at" : ""}`} title={number(act)}>{text(id)}</span>;
      })}
    </pre>
  );
}
