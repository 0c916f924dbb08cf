// The table of clusters: search, order, and its rows, some at a time. Without this the links to all pages are there.
const STEP = 200;
const rows = JSON.parse(document.getElementById("rows").textContent);
const table = document.getElementById("table"), body = document.getElementById("body"), more = document.getElementById("more");
const search = document.getElementById("search"), heads = [...table.querySelectorAll("button")];
const collator = new Intl.Collator(undefined, { numeric: true }), number = new Intl.NumberFormat("en-US");
for (const row of rows) row.text = `${row.name} ${row.nouns}`.toLowerCase();
const orders = {
  name: (a, b) => collator.compare(a.name, b.name),
  size: (a, b) => a.size - b.size,
  // A cluster without images has no confidence. It comes last in both directions.
  confidence: (a, b) => a.confidence - b.confidence,
};
let found = rows, key = "size", down = true, drawn = 0;

function cell(text, kind) {
  const made = document.createElement("td");
  made.className = kind;
  made.textContent = text;
  return made;
}
function draw() {
  const made = found.slice(drawn, drawn + STEP).map((row) => {
    const line = document.createElement("tr"), name = document.createElement("td"), link = document.createElement("a");
    link.href = row.href;
    link.textContent = row.name;
    link.dir = "auto";
    name.append(link);
    const sure = row.confidence === null ? "–" : row.confidence.toFixed(2);
    line.append(name, cell(row.nouns, "wide"), cell(number.format(row.size), "number"), cell(sure, "number"));
    return line;
  });
  body.append(...made);
  drawn += made.length;
  more.hidden = drawn === found.length;
  document.getElementById("shown").textContent = `${number.format(found.length)} of ${number.format(rows.length)} found`;
}
function show() {
  const words = search.value.toLowerCase().split(/\s+/);
  const empty = (row) => key === "confidence" && row.confidence === null;
  const order = (a, b) => empty(a) - empty(b) || (down ? orders[key](b, a) : orders[key](a, b));
  found = rows.filter((row) => words.every((word) => row.text.includes(word))).sort(order);
  body.replaceChildren();
  drawn = 0;
  draw();
}
for (const head of heads) {
  head.addEventListener("click", () => {
    down = key === head.dataset.key ? !down : head.dataset.key !== "name";
    key = head.dataset.key;
    for (const other of heads) other.parentElement.ariaSort = other === head ? (down ? "descending" : "ascending") : "none";
    show();
  });
}
search.addEventListener("input", show);
more.addEventListener("click", draw);
document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
document.getElementById("controls").hidden = table.hidden = false;
show();
