/** The card of a feature: where it is active, what it does to the logits, its strongest edges. The report's pages of
 * features and the explorer show the same card. */
import "./card.css";
import { number, some, token } from "./text";

export interface Example { kind: string; position: number; start: number; tokens: number[]; acts: number[] }
export interface Edge { side: "up" | "down"; site: string; other: number; score: number }
export interface CardContent {
  octaves: number[]; rule_f1: (number | null)[]; rule_accuracy: (number | null)[]; rule_tokens: number[]; promoted: number[];
  promoted_by: number[]; suppressed: number[]; suppressed_by: number[]; examples: Example[]; edges: Edge[];
  judged: { explanation: string | null; detection: number | null; fuzzing: number | null; judge: { model: string } }[];
}
export interface CardProps {
  card: CardContent; density: number; maximum: number; octaves: number[]; lengths: number[];
  text: (id: number) => string;
  /** The page of a feature that an edge leads to; without it the edges are left out. */
  page?: (edge: Edge) => string;
}

const KINDS: [string, string][] = [
  ["top", "Strongest"], ["random", "At random"], ["band", "One at random of each power of two, from weak to strong"],
];
const ENDS: ["up" | "down", string][] = [["up", "Strongest edges from"], ["down", "Strongest edges to"]];

export function Card({ card, density, maximum, octaves, lengths, text, page }: CardProps) {
  const rules = lengths.map((n, i) => `${some(n, "token")}: F1 ${number(card.rule_f1[i])}, balanced accuracy ${number(card.rule_accuracy[i])}`);
  return (
    <div class="card">
      <p>Fires on {number(100 * density)} % of the tokens, up to {number(maximum)}.</p>
      <p class="rule">A rule of {rules.join("; ")}. {card.rule_tokens.length > 0 && "One token: "}{card.rule_tokens.map((id) => <><Word text={text(id)} /> </>)}</p>
      {card.judged.map((judged, i) => (
        <p key={i}>{judged.judge.model}: {judged.explanation ?? "too few examples"} (detection {number(judged.detection)}, fuzzing {number(judged.fuzzing)})</p>
      ))}
      <div class="side">
        <Histogram counts={card.octaves} octaves={octaves} />
        <Logits title="Promotes (logits)" ids={card.promoted} by={card.promoted_by} text={text} />
        <Logits title="Suppresses" ids={card.suppressed} by={card.suppressed_by} text={text} />
        {page && ENDS.map(([side, title]) => card.edges.some((edge) => edge.side === side) && (
          <div key={side}><h3>{title}</h3><table><tbody>{card.edges.filter((edge) => edge.side === side).map((edge) => (
            <tr key={`${edge.site} ${edge.other}`}><td><a href={page(edge)}>{edge.site} {edge.other}</a></td><td>{number(edge.score)}</td></tr>
          ))}</tbody></table></div>
        ))}
      </div>
      {KINDS.map(([kind, title]) => {
        const shown = card.examples.filter((one) => one.kind === kind);
        return shown.length > 0 && <div key={kind}><h3>{title}</h3>{shown.map((one, i) => <Context key={i} example={one} text={text} most={maximum || 1} />)}</div>;
      })}
    </div>
  );
}

const Word = ({ text }: { text: string }) => <code>{token(text)}</code>;

function Histogram({ counts, octaves }: { counts: number[]; octaves: number[] }) {
  const most = Math.max(1, ...counts), says = counts.map((n, i) => `2^${octaves[i]}: ${n}`);
  return (
    <div>
      <h3>Activations, by powers of two</h3>
      <svg class="bars" width={counts.length * 12} height={62} role="img" aria-label={says.filter((_, i) => counts[i]! > 0).join("; ")}>
        {counts.map((n, i) => <rect key={i} x={i * 12} width={10} y={60 - (60 * n) / most} height={(60 * n) / most}><title>{says[i]}</title></rect>)}
      </svg>
    </div>
  );
}

function Logits({ title, ids, by, text }: { title: string; ids: number[]; by: number[]; text: (id: number) => string }) {
  if (!ids.length) return null;
  return <div><h3>{title}</h3><table><tbody>{ids.map((id, i) => <tr key={id}><td><Word text={text(id)} /></td><td>{number(by[i])}</td></tr>)}</tbody></table></div>;
}

function Context({ example, text, most }: { example: Example; text: (id: number) => string; most: number }) {
  return (
    <pre class="context">
      {example.tokens.map((id, i) => {
        const act = example.acts[i] ?? 0, level = act > 0 ? Math.min(8, Math.max(1, Math.ceil((8 * act) / most))) : 0;
        const kinds = [level ? `act${level}` : "", example.start + i === example.position ? "at" : ""].filter(Boolean).join(" ");
        return <span key={i} class={kinds} title={number(act)}>{text(id)}</span>;
      })}
    </pre>
  );
}
