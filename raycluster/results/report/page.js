// Search and order of the cards. Without this the page is complete: all cards, largest first.
const list = document.getElementById("cards"), cards = [...list.children];
const search = document.getElementById("search"), sort = document.getElementById("sort");
const confidence = (card, missing) => (card.dataset.confidence === "" ? missing : +card.dataset.confidence);
const orders = {
  size: (a, b) => b.dataset.size - a.dataset.size,
  surest: (a, b) => confidence(b, -1) - confidence(a, -1),
  unsure: (a, b) => confidence(a, 2) - confidence(b, 2),
  name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
};
function show() {
  const words = search.value.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const card of cards) {
    const text = `${card.dataset.name} ${card.dataset.nouns}`.toLowerCase();
    card.hidden = !words.every((word) => text.includes(word));
    shown += !card.hidden;
  }
  document.getElementById("shown").textContent = `${shown} of ${cards.length} shown`;
}
search.addEventListener("input", show);
sort.addEventListener("change", () => list.append(...cards.sort(orders[sort.value])));
// A link of the map or the sizes may lead to a card that the search hides.
addEventListener("hashchange", () => {
  const card = document.getElementById(location.hash.slice(1));
  if (card?.hidden) {
    search.value = "";
    show();
    card.scrollIntoView();
  }
});
document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
document.getElementById("controls").hidden = false;
show();
