// The page: input of images by drawing, choosing, dropping or pasting; display of class, probabilities and cosines.
"use strict";

const element = (id) => document.getElementById(id);
const SHOWN = 10; // classes in the table; also in the picture, for more than EVERY classes
const EVERY = 12; // largest number of classes that the picture shows completely
const RADIUS = 120; // of the picture's circle, in units of its view box
const HALF = 230; // half the width of the picture, in the same units
const LONGEST = 14; // characters of a name in the picture
let latest = 0; // number of images so far; only the answer for the latest one is shown

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

function percent(probability) {
  return probability > 0 && probability < 0.0001 ? "< 0.01 %" : `${(100 * probability).toFixed(2)} %`;
}

const signed = (cosine) => cosine.toFixed(3).replace("-", "−");

// Show pixels and their classification.
async function show(pixels, mine = ++latest) {
  showView(pixels);
  const answer = await classifyPixels(pixels);
  if (mine !== latest) return;
  say("");
  element("winner").textContent = about.class_names[answer.label];
  element("certainty").textContent =
    `${percent(answer.probabilities[answer.label])}, cosine ${signed(answer.cosines[answer.label])}`;
  element("foreign").hidden = !(answer.oodScore < about.ood?.threshold);
  element("answer").hidden = false; // first, because showVertices measures the names on the screen
  element("waiting").hidden = true;
  showTable(answer);
  showVertices(answer);
}

function showNothing() {
  latest++;
  say("");
  element("answer").hidden = true;
  element("waiting").hidden = false;
  element("seen").hidden = true;
}

function showError(error) {
  showNothing();
  say(error.message, true);
}

function showView(pixels) {
  const canvas = element("view");
  canvas.width = imageWidth;
  canvas.height = imageHeight;
  const picture = new ImageData(imageWidth, imageHeight);
  for (let i = 0; i < imageWidth * imageHeight; i++) {
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = pixels[i * imageChannels + (imageChannels === 1 ? 0 : c)];
    picture.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
  element("seen").hidden = false;
}

// Indices of the `count` largest values, the largest first.
function largest(values, count) {
  return values.map((_, i) => i).sort((a, b) => values[b] - values[a]).slice(0, count);
}

function showTable({ label, probabilities, cosines }) {
  const rows = largest(probabilities, SHOWN).map((k) => {
    const row = document.createElement("tr");
    row.classList.toggle("winner", k === label);
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = name.title = about.class_names[k];
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.style.width = `${100 * probabilities[k]}%`;
    const barCell = document.createElement("td");
    barCell.className = "bars";
    barCell.append(bar);
    const numbers = [percent(probabilities[k]), signed(cosines[k])].map((text) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      return cell;
    });
    row.append(name, barCell, ...numbers);
    return row;
  });
  element("rows").replaceChildren(...rows);
}

function svg(kind, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Names, truncated for the picture; a common beginning is left out if the truncated names are not unique.
function shortNames(names) {
  const cut = (name) => (name.length > LONGEST ? `${name.slice(0, LONGEST - 1)}…` : name);
  const short = names.map(cut);
  if (new Set(short).size === names.length) return short;
  let alike = 0;
  while (alike < names[0].length && names.every((name) => name[alike] === names[0][alike])) alike++;
  alike = names[0].lastIndexOf(" ", alike - 1) + 1; // whole words
  return alike ? names.map((name) => cut(`…${name.slice(alike)}`)) : short;
}

// The vertices around a circle, and the cosine of the image's feature to each: −1 at the centre, 1 on the circle.
function showVertices({ label, cosines }) {
  const K = cosines.length;
  const shown = K <= EVERY ? cosines.map((_, k) => k) : largest(cosines, SHOWN);
  const radius = (cosine) => (RADIUS * (1 + cosine)) / 2;
  const place = (i, r) => {
    const angle = (2 * Math.PI * i) / shown.length - Math.PI / 2;
    return [r * Math.cos(angle), r * Math.sin(angle)];
  };
  const parts = [
    svg("circle", { r: RADIUS, class: "ring" }),
    svg("circle", { r: radius(about.other_cosine), class: "ring others" }),
  ];
  const corners = shown.map((k, i) => place(i, radius(cosines[k])));
  const names = shortNames(shown.map((k) => about.class_names[k]));
  for (const [i, k] of shown.entries()) {
    const chosen = k === label ? " winner" : "";
    const [x, y] = place(i, RADIUS);
    const [labelX, labelY] = place(i, RADIUS + 14);
    const side = Math.abs(labelX) < 8 ? "middle" : labelX > 0 ? "start" : "end";
    parts.push(
      svg("line", { x2: x, y2: y, class: "spoke" }),
      svg("circle", { cx: x, cy: y, r: 3, class: `vertex${chosen}` }),
      svg("text", { x: labelX, y: labelY, "text-anchor": side, "dominant-baseline": "central", class: `name${chosen}` },
        names[i]),
    );
  }
  parts.push(svg("polygon", { points: corners.map((corner) => corner.join()).join(" "), class: "feature" }));
  for (const [i, k] of shown.entries()) {
    const [cx, cy] = corners[i];
    parts.push(svg("circle", { cx, cy, r: k === label ? 6 : 4, class: `cosine${k === label ? " winner" : ""}` }));
  }
  const picture = element("picture");
  const list = shown.map((k) => `${about.class_names[k]} ${signed(cosines[k])}`).join(", ");
  picture.setAttribute("aria-label", `Cosines to ${about.vertices}: ${list}`);
  picture.replaceChildren(...parts);
  for (const text of picture.querySelectorAll(".name")) {
    const room = text.getAttribute("text-anchor") === "middle" ? HALF : HALF - Math.abs(text.getAttribute("x"));
    let name = text.textContent;
    while (name.length > 2 && text.getComputedTextLength() > room) {
      name = `${name.slice(0, -2)}…`;
      text.textContent = name;
    }
  }
}

async function showFile(file) {
  if (!file) return;
  if (drawing) drawing.clear();
  say("Looking …");
  element("file").value = ""; // the same file may be chosen again
  const mine = ++latest;
  try {
    const pixels = await viewOf(file);
    if (mine !== latest) return; // a large photo takes seconds: a newer image replaces it
    showPreview(file);
    await show(pixels, mine);
  } catch (error) {
    if (mine !== latest) return;
    showPreview(null);
    showError(error);
  }
}

function showPreview(file) {
  const preview = element("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.hidden = !file || drawing !== null;
  element("hint").hidden = !preview.hidden;
  if (file) preview.src = URL.createObjectURL(file);
  else preview.removeAttribute("src");
}

function watchFiles() {
  element("file").addEventListener("change", (event) => showFile(event.target.files[0]));
  document.addEventListener("paste", (event) => showFile(event.clipboardData.files[0]));
  const over = (isOver) => document.body.classList.toggle("over", isOver);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && over(false));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    showFile(event.dataTransfer.files[0]);
  });
}

function startDrawing() {
  let waiting = false; // for the answer to an incomplete stroke
  const changed = async (complete) => {
    if (made.empty) return showNothing();
    if (!complete && waiting) return;
    waiting = true;
    try {
      await show(made.view());
    } catch (error) {
      showError(error);
    }
    waiting = false;
  };
  const made = new Drawing(element("sheet"), element("cursor"), about.preprocessing.mean[0] < 0.5, changed);
  element("clear").addEventListener("click", () => made.clear());
  element("undo").addEventListener("click", () => made.undo());
  return made;
}

const drawing = element("sheet") ? startDrawing() : null;
watchFiles();
say("Starting the network …");
network.then(
  () => {
    document.body.dataset.ready = "";
    if (element("answer").hidden && !element("status").classList.contains("error")) say("");
  },
  (error) => showError(new Error(`The network cannot be started in this browser: ${error.message ?? error}`)),
);
