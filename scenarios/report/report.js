const NONCE = document.currentScript.nonce;
async function unpack() {
  const packed = atob(document.getElementById("plotly-packed").textContent);
  const bytes = Uint8Array.from(packed, (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.nonce = NONCE;
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}
function drawIn(part) {
  for (const figure of part.querySelectorAll("figure.chart:not(.drawn)")) {
    const closed = figure.closest("details:not([open])");
    if (closed) continue;
    figure.classList.add("drawn");
    const place = figure.querySelector(".plot");
    place.replaceChildren();
    draw(place, JSON.parse(document.getElementById(figure.dataset.chart).textContent));
  }
}
unpack().then(() => {
  drawIn(document);
  document.addEventListener("toggle", (event) => drawIn(event.target), true);
  document.body.dataset.ready = "yes";
}, (error) => {
  for (const place of document.querySelectorAll(".plot")) {
    place.textContent = "Charts need a browser of 2023 or later; the tables say the same.";
  }
  console.warn(error);
});
