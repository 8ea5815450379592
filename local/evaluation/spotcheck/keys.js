"use strict";
// A key presses the button that carries its name; without scripts the buttons work alone. Loaded before the page is
// shown, so that no key is lost.
const NAMES = { ArrowLeft: "left", ArrowRight: "right", "=": "tie", ArrowDown: "tie", s: "skip", u: "undo" };
let pressed = false;
document.addEventListener("submit", (event) => {
  // One vote per page, however fast the keys come.
  if (pressed) event.preventDefault();
  pressed = true;
});
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.repeat) return;
  const name = NAMES[event.key] || NAMES[event.key.toLowerCase()];
  const button = name && document.querySelector(`button[value="${name}"]:not(:disabled)`);
  if (!button) return;
  event.preventDefault();
  button.click();
});
