"use strict";
// Search among folds: those stay that hold every word, whatever its case. All else works without this.
for (const box of document.querySelectorAll(".searchable")) {
  const form = box.querySelector(".search"), input = form.querySelector("input"), said = form.querySelector("output");
  const items = [...box.querySelectorAll(":scope > details")].map((fold) => ({ fold, text: fold.textContent.toLowerCase(), open: fold.open }));
  form.hidden = false;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const { fold, text, open } of items) {
      fold.hidden = !words.every((word) => text.includes(word));
      fold.open = words.length ? !fold.hidden : open;
      left += !fold.hidden;
    }
    said.textContent = words.length ? `${left} of ${items.length} ${box.dataset.what}` : "";
    mark(box, words);
  });
}

function mark(box, words) {
  if (!globalThis.Highlight) return;
  const ranges = [];
  const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const text = node.data.toLowerCase();
    if (text.length !== node.data.length || node.parentElement.closest("[hidden], .search")) continue;
    for (const word of words) {
      for (let at = text.indexOf(word); at >= 0 && ranges.length < 2000; at = text.indexOf(word, at + word.length)) {
        const range = new Range();
        range.setStart(node, at);
        range.setEnd(node, at + word.length);
        ranges.push(range);
      }
    }
  }
  CSS.highlights.set("found", new Highlight(...ranges));
}
