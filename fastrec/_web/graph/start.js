// Opens the page: reads its data, builds it, takes over the state in the address, runs the checks where that asks for them.

function start() {
  const elements = {};
  for (const found of document.querySelectorAll("[id]")) elements[found.id] = found;
  const graph = new Graph(JSON.parse(elements.data.textContent));
  elements.model.textContent = graph.title;
  elements.facts.textContent = graph.caption.slice(1).join("  ·  ");
  showBadge(elements.badge, graph.about.validated);
  const page = new Page(graph, elements);
  page.controls = new Controls(page, elements);
  const hash = window.location.hash;
  const hasCamera = hash.includes("=") && restoreState(page, hash);
  elements.colour.value = page.colour;
  if (!hasCamera) page.fit({isFirst: true});
  if (!hasCamera && page.selected) page.reveal(page.selectedThing());
  page.paint();
  page.firstPaint = performance.now();
  window.addEventListener("hashchange", () => {
    if (`#${stateOf(page)}` !== window.location.hash) restoreState(page, window.location.hash);
    page.drawn();
  });
  return page;
}

function showBadge(badge, validated) {
  if (validated === null || validated === undefined) return;
  badge.hidden = false;
  badge.classList.toggle("is-bad", !validated);
  badge.title = validated
    ? "Each operation was run again on what was saved, and gave what was saved."
    : "An operation that was run again on what was saved gave something else.";
  badge.append(icon(validated ? "check" : "close"), validated ? "validated" : "not valid");
}

const page = start();
if (window.location.hash === "#test") runChecks(page);
