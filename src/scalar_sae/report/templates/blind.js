"use strict";
const keys = { ArrowLeft: "left", ArrowRight: "right", n: "neither" };
let current = null, before = null, total = 0, busy = false;

function show(examples, into) {
  into.replaceChildren();
  for (const [kind, title] of [["top", "Strongest"], ["random", "At random"]]) {
    const heading = document.createElement("h3");
    heading.textContent = title;
    into.append(heading);
    for (const example of examples.filter((e) => e.kind === kind)) {
      const line = document.createElement("pre");
      for (const [text, act] of example.tokens) {
        const token = document.createElement("span");
        token.textContent = text;
        if (act > 0) token.style.background = `rgba(224, 112, 45, ${0.15 + 0.85 * act})`;
        line.append(token);
      }
      into.append(line);
    }
  }
}

function ask(question, note) {
  current = question.number;
  total = question.total;
  before = question.answer ?? null;
  document.getElementById("progress").textContent = [`${question.done} of ${total}`, before && `your answer was: ${before}`, note].filter(Boolean).join("; ");
  const over = current === null;
  for (const id of ["pair", "choices"]) document.getElementById(id).hidden = over;
  document.getElementById("end").hidden = !over;
  if (!over) for (const side of ["left", "right"]) show(question[side], document.getElementById(side));
  document.body.dataset.pair = current;
  window.scrollTo(0, 0);
}

async function load(path, failed, options) {
  if (busy) return;
  busy = true;
  try {
    const reply = await fetch(path, options), content = await reply.json();
    if (reply.status === 409) ask(await (await fetch("question")).json(), content.error);
    else if (!reply.ok) throw new Error(content.error);
    else ask(content);
  } catch (error) {
    document.getElementById("progress").textContent = `${failed}: ${error.message}`;
  } finally {
    busy = false;
  }
}

function answer(choice) {
  if (current !== null) load("answer", "not saved",
    { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ pair: current, choice, before }) });
}

function back() {
  const before = (current ?? total) - 1;
  if (before >= 0) load(`question/${before}`, "not loaded");
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.repeat) return;
  if (event.key === "Backspace") back();
  else if (event.key in keys) answer(keys[event.key]);
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("button")) button.addEventListener("click", () => answer(button.dataset.choice));
load("question", "not loaded");
