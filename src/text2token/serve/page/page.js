// Search and lens in the browser. What comes from the server or the user is only ever put in as text, never as markup.

const EXCERPT = 300; // characters of a text that are shown at first
const REASONS = 5; // of a kind, for a hit
const PAUSE = 300; // milliseconds without a key before two texts are compared
const KEY = "text2token-api-key";
const EXAMPLE = ["The price of coffee rose sharply after frost damaged the harvest.", "Cold weather in Brazil has made espresso more expensive."];

const ROOT = new URL("..", import.meta.url); // where the server answers, behind a proxy too

const $ = id => document.getElementById(id);
let served = null; // the card of the model, from /v1/models

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// ── the server ──────────────────────────────────────────────────────────────────────────────────────────────────────────

class NeedsKey extends Error {}

async function ask(path, question, signal) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(new URL(path, ROOT), question ? { method: "POST", headers, body: JSON.stringify(question), signal } : { headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const message = answer?.error?.message ?? `The server answered ${response.status}.`;
  throw response.status === 401 ? new NeedsKey(message) : new Error(message);
}

function show(error) {
  if (error?.name === "AbortError") return; // a newer question has taken its place
  $("problem").textContent = error && !(error instanceof NeedsKey && !sessionStorage.getItem(KEY)) ? error.message : "";
  $("problem").hidden = !$("problem").textContent;
  if (error instanceof NeedsKey) {
    $("key-form").hidden = false;
    $("key").focus();
  }
}

function tooLong(text, name) {
  const limit = served.limits.characters;
  return text.length > limit ? new Error(`${name} has ${text.length.toLocaleString("en")} characters; at most ${limit.toLocaleString("en")} can be read.`) : null;
}

// the latest question of a kind makes earlier ones void
function onlyLatest(busy) {
  let controller = new AbortController();
  return async work => {
    controller.abort();
    const mine = (controller = new AbortController());
    busy.setAttribute("aria-busy", "true");
    try {
      await work(mine.signal);
    } catch (error) {
      show(error);
    } finally {
      if (mine === controller) busy.removeAttribute("aria-busy");
    }
  };
}

// ── bars ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

function bars(list, rows, longest) {
  const most = Math.max(...rows.map(row => row.value), 0);
  const digits = most >= 10 ? 1 : most >= 1 ? 2 : 3;
  list.replaceChildren(...rows.map(({ word, value, beyond }) => {
    const bar = element("span", { className: "bar" });
    bar.style.setProperty("--share", `${Math.max(0, Math.min(100, (100 * value) / longest))}%`);
    const track = element("span", { className: "track" }, bar);
    track.setAttribute("aria-hidden", "true");
    const row = element("li", { className: beyond ? "beyond" : "" },
      element("span", { className: "word", dir: "auto", textContent: word, title: word }), track, element("span", { className: "value", textContent: figure(value, digits) }));
    if (beyond) row.append(element("span", { className: "hidden", textContent: "beyond the text" }));
    return row;
  }));
  return list;
}

const figure = (value, digits = 2) => value.toFixed(digits).replace(/^-(?=0\.0+$)/, "").replace("-", "−");

// ── search ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

const searching = onlyLatest($("hits"));

function search() {
  const query = $("query").value.trim();
  const mode = document.querySelector("[name=mode]:checked").value;
  const field = $("field").value, value = $("value").value.trim();
  $("value").hidden = !field;
  const only = field && value ? { field, value } : null;
  if (!query) {
    $("hits").replaceChildren();
    $("found").textContent = "";
    show(null);
    return;
  }
  searching(async signal => {
    const wrong = tooLong(query, "The query");
    if (wrong) throw wrong;
    const started = performance.now();
    const { hits } = await ask("v1/search", { query, mode, k: 10, filters: only ? { [field]: value } : {} }, signal);
    show(null);
    $("found").textContent = hits.length ? `${hits.length} found in ${Math.round(performance.now() - started)} ms` : only ? `No such document where ${field} is ${value}.` : mode === "sparse" ? "No document has any of these words." : "Nothing found.";
    const longest = {};
    for (const { half, contribution } of hits.flatMap(hit => hit.reasons)) longest[half] = Math.max(longest[half] ?? 0, contribution);
    $("hits").replaceChildren(...hits.map(hit => result(hit, query, longest)));
    history.replaceState(null, "", `#${new URLSearchParams({ q: query.slice(0, 500), mode, ...only })}`);
  });
}

function result(hit, query, longest) {
  const points = Array.from(hit.text); // the server counts characters, JavaScript halves of some of them
  const text = element("p", { className: "text", dir: "auto" });
  const short = excerpt(points.length, hit.highlights);
  marked(text, points, hit.highlights, ...short);
  const actions = element("div", { className: "actions" });
  const item = element("li", { className: "hit", tabIndex: -1 }, element("div", { className: "place", textContent: hit.place, dir: "auto" }), text, why(hit, longest), actions);
  if (short[1] - short[0] < points.length) {
    const more = element("button", { className: "link", type: "button", textContent: "Whole text" });
    more.setAttribute("aria-expanded", "false");
    more.addEventListener("click", () => {
      const whole = more.getAttribute("aria-expanded") === "false";
      more.setAttribute("aria-expanded", whole);
      more.textContent = whole ? "Less" : "Whole text";
      text.classList.toggle("whole", whole);
      if (whole) text.tabIndex = 0; // it scrolls
      else text.removeAttribute("tabindex");
      marked(text, points, hit.highlights, ...(whole ? [0, points.length] : short));
    });
    actions.append(more);
  }
  if (served.lens) {
    const compare = element("button", { className: "link", type: "button", textContent: "Compare with the query" });
    compare.addEventListener("click", () => {
      $("text-a").value = query;
      $("text-b").value = hit.text;
      view("compare", true);
      read();
    });
    actions.append(compare);
  }
  return item;
}

function why(hit, longest) {
  const reasons = element("div", { className: "why" });
  const halves = [["sparse", "words", "Shared words", `BM25 ${figure(hit.sparse, 1)}`], ["dense", "meaning", "Shared meaning", `cosine ${figure(hit.dense)}`]];
  for (const [half, kind, title, score] of halves) {
    const rows = hit.reasons.filter(reason => reason.half === half).slice(0, REASONS).map(({ word, contribution }) => ({ word, value: contribution }));
    if (!rows.length && half === "sparse" && !hit.sparse) continue;
    reasons.append(element("h3", {}, title, element("span", { textContent: score })),
      bars(element("ul", { className: `bars ${kind}` }), rows, longest[half] || 1));
  }
  return reasons;
}

// where to begin and end, so that most of the places are seen
function excerpt(length, places) {
  if (length <= EXCERPT * 1.25) return [0, length];
  const within = start => places.filter(([from]) => from >= start && from < start + EXCERPT * 0.8).length;
  const best = places.reduce((best, [from]) => (within(from) > within(best) ? from : best), places[0]?.[0] ?? 0);
  const start = best < EXCERPT / 2 ? 0 : Math.min(best - 50, length - EXCERPT);
  return [start, start + EXCERPT];
}

function marked(into, points, places, start, end) {
  while (start > 0 && /\S/.test(points[start - 1])) start--; // whole words, unless they never end
  let last = end;
  while (last < points.length && last < end + 30 && /\S/.test(points[last])) last++;
  const parts = [];
  if (start > 0) parts.push("… ");
  let at = start;
  for (const [from, to] of places) {
    if (to <= at || from >= last) continue;
    parts.push(points.slice(at, from).join(""), element("mark", { textContent: points.slice(Math.max(at, from), Math.min(to, last)).join("") }));
    at = Math.min(to, last);
  }
  parts.push(points.slice(at, last).join(""));
  if (last < points.length) parts.push(" …");
  into.replaceChildren(...parts);
}

$("search-form").addEventListener("submit", event => {
  event.preventDefault();
  search();
});
$("search-form").addEventListener("change", event => event.target !== $("query") && search());
$("query").addEventListener("input", () => $("query").value || search());

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.matches?.("input:not([type=radio]), textarea");
  if (event.key === "/" && !typing && !$("tabs").hidden) {
    event.preventDefault();
    view("search");
    $("query").focus();
    $("query").select();
  }
  if ($("search").hidden) return;
  const hits = [...$("hits").children], here = hits.indexOf(event.target.closest?.(".hit"));
  if (event.key === "ArrowDown" && (event.target === $("query") || here >= 0) && hits[here + 1]) move(event, hits[here + 1]);
  else if (event.key === "ArrowUp" && here >= 0) move(event, hits[here - 1] ?? $("query"));
  else if (event.key === "Escape" && here >= 0) move(event, $("query"));
  else if (event.key === "Enter" && event.target === hits[here]) event.target.querySelector("[aria-expanded]")?.click();
});

function move(event, to) {
  if (event.target.matches(".whole")) return; // the arrows scroll a long text
  event.preventDefault();
  to.focus();
  to.scrollIntoView({ block: "nearest" });
}

// ── lens ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

const reading = onlyLatest($("reading"));

function read() {
  const texts = ["text-a", "text-b"].map(id => $(id).value);
  const given = texts.filter(text => text.trim());
  $("invitation").hidden = given.length > 0;
  $("reading").hidden = $("legend").hidden = !given.length;
  reading(async signal => {
    const wrong = tooLong(texts[0], "Text A") ?? tooLong(texts[1], "Text B");
    if (wrong) throw wrong;
    if (!given.length) return show(null);
    const answer = await ask("v1/lens", { texts: given, k: 10, ...(given.length === 2 ? { pair: given } : {}) }, signal);
    show(null);
    const decoded = texts.map(text => (text.trim() ? answer.texts[given.indexOf(text)].words : []));
    const longest = Math.max(...decoded.flat().map(word => word.weight), 1e-9);
    for (const [row, id] of ["decoded-a", "decoded-b"].entries()) {
      $(id).hidden = !decoded[row].length;
      bars($(id).querySelector("ul"), decoded[row].map(word => ({ word: word.word, value: word.weight, beyond: !word.in_text })), longest);
    }
    compared(answer.pair);
  });
}

function compared(pair) {
  $("shared").hidden = !pair;
  $("reading").classList.toggle("both", Boolean(pair));
  $("compared").textContent = pair ? `Cosine ${figure(pair.cosine)}` : "";
  if (!pair) return;
  $("cosine").textContent = figure(pair.cosine);
  const parts = [["words", pair.explained], ["common", pair.common], ["rest", pair.rest]];
  $("parts").replaceChildren(...parts.filter(([, part]) => part > 0).map(([name, part]) => {
    const piece = element("i", { className: name });
    piece.style.setProperty("--share", part);
    return piece;
  }));
  $("parts-explained").textContent = `${figure(pair.explained)} by the words below, ${figure(pair.common)} common to all texts, ${figure(pair.rest)} rest`;
  bars($("shared").querySelector("ul"), pair.words.map(({ word, share }) => ({ word, value: share })), Math.max(...pair.words.map(word => word.share), 1e-9));
}

let pause;
for (const id of ["text-a", "text-b"]) {
  $(id).addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(read, PAUSE);
  });
}
$("example").addEventListener("click", () => {
  [$("text-a").value, $("text-b").value] = EXAMPLE;
  $("text-a").focus();
  read();
});

// ── views ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

function view(name, focus = false) {
  for (const other of ["search", "compare"]) {
    $(other).hidden = other !== name;
    $(`tab-${other}`).setAttribute("aria-selected", other === name);
    $(`tab-${other}`).tabIndex = other === name ? 0 : -1;
  }
  if (focus) $(`tab-${name}`).focus();
}

for (const [name, other] of [["search", "compare"], ["compare", "search"]]) {
  $(`tab-${name}`).addEventListener("click", () => view(name));
  $(`tab-${name}`).addEventListener("keydown", event => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") view(other, true);
  });
}

async function begin() {
  try {
    served = (await ask("v1/models")).data[0];
  } catch (error) {
    return show(error);
  }
  show(null);
  $("key-form").hidden = true;
  const { index, lens } = served;
  $("served").textContent = index ? `${served.id} · ${index.documents.toLocaleString("en")} documents` : served.id;
  $("tabs").hidden = !(index && lens);
  $("no-lens").hidden = Boolean(lens);
  $("no-lens").textContent = lens ? "" : `No lens: ${served.id} has no reader of its embeddings. Learn one: text2token lens fit MODEL --corpus FILE --save`;
  if (index) {
    view("search");
    const wanted = new URLSearchParams(location.hash.slice(1));
    const mode = document.querySelector(`[name=mode][value="${CSS.escape(wanted.get("mode") ?? "hybrid")}"]`);
    if (mode) mode.checked = true;
    $("query").value = wanted.get("q") ?? "";
    $("filter").hidden = !index.fields.length;
    $("field").replaceChildren($("field").options[0], ...index.fields.map(name => element("option", { value: name, textContent: `Where ${name}` })));
    $("field").value = index.fields.includes(wanted.get("field")) ? wanted.get("field") : "";
    $("value").value = wanted.get("value") ?? "";
    $("query").focus();
    search();
  } else if (lens) {
    view("compare");
    $("text-a").focus();
  }
}

$("key-form").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  begin();
});
begin();
