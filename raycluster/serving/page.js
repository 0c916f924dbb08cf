"use strict";
const byId = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
// Everything that comes from a file or a reply enters the page as text, never as markup.
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
let token = "", most = 64;

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  for (let attempt = 0; ; attempt += 1) {
    const reply = await fetch(path, { ...options, headers, credentials: "omit" });
    if (reply.status === 503 && attempt < 5) {
      await new Promise((go) => setTimeout(go, 1000 * (Number(reply.headers.get("retry-after")) || 1)));
      continue;
    }
    byId("access").hidden = reply.status !== 401;
    const body = await reply.json();
    if (!reply.ok) throw new Error(body.error ? body.error.message : `status ${reply.status}`);
    return body;
  }
}

async function showModel() {
  try {
    const model = await ask("v1/model");
    most = model.limits.max_items;
    byId("model").textContent = `${model.n_clusters} clusters by ${model.method} · model ${model.model.version}`;
    byId("drop").hidden = !model.takes_pictures;
    byId("note").textContent = model.takes_pictures ? "" : "This model was trained on ready-made embeddings and takes no pictures.";
  } catch (error) {
    byId("model").textContent = error.message;
  }
}

function bars(top) {
  const list = make("dl", { className: "bars" });
  for (const { name, confidence } of top) {
    list.append(
      make("dt", { textContent: name, title: name }),
      make("dd", {}, make("progress", { max: 1, value: confidence })),
      make("dd", { className: "share", textContent: percent(confidence) }),
    );
  }
  return list;
}

async function showExemplars(place, cluster) {
  try {
    const { size, exemplars } = await ask(`v1/clusters/${cluster}`);
    const pictures = exemplars.filter((each) => each.thumbnail);
    if (!pictures.length) return;
    const count = size === null ? "" : ` of its ${size}`;
    place.append(make("small", { textContent: `${pictures.length}${count} pictures, the most typical first` }));
    const row = make("div", { className: "exemplars" });
    for (const { thumbnail, image_id, confidence } of pictures) {
      row.append(make("img", { src: thumbnail, alt: image_id, title: `${image_id}: ${percent(confidence)}` }));
    }
    place.append(row);
  } catch (error) {
    place.append(make("small", { textContent: error.message }));
  }
}

function showItem(file, item) {
  const answer = make("div");
  const url = URL.createObjectURL(file);
  const picture = make("img", { className: "picture", src: url, alt: "" });
  picture.onload = () => URL.revokeObjectURL(url);
  // What the browser cannot show either gets an empty frame, not its broken-picture sign.
  picture.onerror = () => { URL.revokeObjectURL(url); picture.removeAttribute("src"); };
  const row = make("li", {}, picture, answer);
  const name = make("p", {}, make("small", { textContent: file.name }));
  if (item.error) {
    row.className = "error";
    answer.append(make("h2", { textContent: item.error.code.replaceAll("_", " ") }), make("p", { textContent: item.error.message }), name);
  } else {
    row.dataset.cluster = item.cluster;
    answer.append(make("h2", {}, `${item.name} `, make("small", { textContent: `cluster ${item.cluster}, ${percent(item.confidence)}` })), name);
    if (item.outlier) answer.append(make("p", { className: "outlier", textContent: "This picture is unlike anything the model was trained on." }));
    answer.append(bars(item.top));
  }
  byId("results").prepend(row);
  return item.error ? null : showExemplars(answer, item.cluster);
}

async function assign(files) {
  const pictures = [...files];
  for (let start = 0; start < pictures.length; start += Math.min(most, 8)) {
    const some = pictures.slice(start, start + Math.min(most, 8));
    byId("note").textContent = `Assigning pictures ${start + 1} to ${start + some.length} of ${pictures.length} …`;
    const form = new FormData();
    some.forEach((file) => form.append("files", file, file.name));
    try {
      const { items } = await ask("v1/assign", { method: "POST", body: form });
      await Promise.all(items.map((item, index) => showItem(some[index], item)));
      byId("note").textContent = "";
    } catch (error) {
      byId("note").textContent = error.message;
      return;
    }
  }
}

const drop = byId("drop");
byId("files").addEventListener("change", (event) => { assign(event.target.files).then(() => { event.target.value = ""; }); });
for (const type of ["dragenter", "dragover"]) {
  document.addEventListener(type, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const type of ["dragleave", "drop"]) {
  document.addEventListener(type, (event) => { event.preventDefault(); drop.classList.remove("over"); });
}
document.addEventListener("drop", (event) => assign(event.dataTransfer.files));
document.addEventListener("paste", (event) => assign(event.clipboardData.files));
byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  showModel();
});
showModel();
