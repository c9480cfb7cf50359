const form = document.querySelector("form.controls");
const at = (id) => document.getElementById(id);
function element(kind, text) {
  const made = document.createElement(kind);
  made.textContent = text;
  return made;
}
function show(answer) {
  at("message").textContent = answer.message;
  at("result").classList.toggle("stale", Boolean(answer.message));
  if (!answer.rows) return;
  at("headline").textContent = answer.headline;
  const table = at("figures");
  table.tHead.rows[0].replaceChildren(...answer.columns.map((name) => element("th", name)));
  table.tBodies[0].replaceChildren(...answer.rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((cell) => element("td", cell)));
    return row;
  }));
  at("notes").replaceChildren(...answer.notes.map((note) => element("li", note)));
  answer.charts.forEach((chart, index) => {
    let figure = at("charts").children[index];
    if (!figure) {
      figure = document.createElement("figure");
      figure.append(element("div", ""), document.createElement("figcaption"));
      figure.firstChild.className = "plot";
      at("charts").append(figure);
    }
    figure.lastChild.textContent = chart.caption;
    draw(figure.firstChild, chart);
  });
  at("took").textContent = `Simulated in ${Math.round(answer.took_s * 1000)} ms.`;
}
// Good enough to place a slider: the server reads units in earnest.
const SCALES = {k: 1e3, M: 1e6, G: 1e9, T: 1e12};
function sizeOf(text) {
  const found = /^([\d.]+)\s*([kMGT]?)i?(b?)/.exec(text);
  return found ? Number(found[1]) * (SCALES[found[2]] || 1) / (found[3] ? 8 : 1) : NaN;
}
function stopOf(slider) {
  const stops = JSON.parse(slider.dataset.stops);
  const value = at(slider.dataset.for).value.trim();
  const exact = stops.indexOf(value);
  if (exact >= 0) return exact;
  const far = (stop) => Math.abs(Math.log(sizeOf(stop) / sizeOf(value)));
  let best = stops.length - 1;
  stops.forEach((stop, index) => { if (far(stop) < far(stops[best])) best = index; });
  return best;
}
for (const slider of form.querySelectorAll("input[type=range]")) {
  slider.value = stopOf(slider);
  slider.addEventListener("input", () => {
    at(slider.dataset.for).value = JSON.parse(slider.dataset.stops)[slider.value];
  });
  at(slider.dataset.for).addEventListener("input", () => { slider.value = stopOf(slider); });
}
let timer = 0;
let running = null;
async function ask() {
  running?.abort();
  running = new AbortController();
  const query = new URLSearchParams(new FormData(form));
  try {
    const reply = await fetch(`/answer?${query}`, {signal: running.signal});
    const answer = reply.ok ? await reply.json() : {message: await reply.text()};
    if (!answer.message) history.replaceState(null, "", answer.query ? `/?${answer.query}` : "/");
    show(answer);
  } catch (error) {
    if (error.name !== "AbortError") show({message: "The explorer does not answer: is it still running?"});
  }
  document.body.dataset.asked = String(Number(document.body.dataset.asked || 0) + 1);
}
form.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(ask, 60); });
form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
show(JSON.parse(at("first").textContent));
document.body.dataset.ready = "yes";
