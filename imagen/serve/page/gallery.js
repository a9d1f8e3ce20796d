// Cards of images, in progress and finished.

import { $, announce, make, plural } from "./dom.js";
import * as store from "./store.js";

const BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";
const cards = new Map(); // of stored items, by id
let onOpen = () => {};

export async function setUp(open) {
  onOpen = open;
  for (const item of await store.all()) show(item);
  updateCounts();
}

function updateCounts() {
  const working = document.querySelectorAll("#gallery .card:not(.stored)").length;
  $("empty").hidden = cards.size + working > 0;
  $("clear").hidden = cards.size === 0;
  $("stored").textContent = cards.size ? `${plural(cards.size, "image")}, stored in this browser` : "";
}

// Add a card for a requested image. Its button calls `cancel`.
export function addPending(prompt, cancel) {
  const picture = make("img", { className: "picture", src: BLANK, alt: "" });
  const words = make("span", { className: "words", text: prompt || "(no prompt)" });
  const state = make("span", { text: "Waiting" });
  const button = make("button", { type: "button", text: "Cancel", ariaLabel: `Cancel ${prompt}` });
  const progress = make("progress", { max: 1, value: 0, ariaLabel: `Progress of ${prompt || "the image"}` });
  const line = make("div", { className: "state" }, state, button);
  const card = make("li", { className: "card waiting" }, picture,
    make("div", { className: "caption" }, words, progress, line));
  button.addEventListener("click", cancel);
  $("gallery").prepend(card);
  updateCounts();
  return {
    queued(position) {
      state.textContent = position > 1 ? `${plural(position - 1, "image")} ahead in the queue` : "Next in the queue";
    },
    preview(event) {
      card.classList.remove("waiting");
      picture.src = event.preview;
      picture.alt = `Preview of ${prompt}`;
      progress.value = event.progress;
      state.textContent = `${event.resolution} px, ${Math.round(event.progress * 100)} %`;
    },
    async done(item) {
      for (const id of await store.add(item)) removeCard(id);
      show(item, card);
      announce(`Finished: ${prompt || "an image"}`);
    },
    failed(message) {
      card.classList.remove("waiting");
      card.classList.add("failed");
      progress.remove();
      state.textContent = message;
      button.textContent = "Remove";
      button.ariaLabel = "Remove this message";
      button.onclick = () => { card.remove(); updateCounts(); $("prompt").focus(); };
    },
    remove() {
      const focused = card.contains(document.activeElement);
      card.remove();
      updateCounts();
      if (focused) $("prompt").focus();
    },
  };
}

function show(item, before) {
  item.address ||= URL.createObjectURL(item.blob);
  const picture = make("img", { className: "picture", src: item.address, alt: item.prompt || "Image without a prompt" });
  const open = make("button", { type: "button", className: "open" }, picture);
  open.addEventListener("click", () => onOpen(item));
  const words = make("span", { className: "words", text: item.prompt || "(no prompt)" });
  const card = make("li", { className: "card stored" }, open, make("div", { className: "caption" }, words));
  cards.set(item.id, { card, item });
  if (before) {
    const focused = before.contains(document.activeElement);
    before.replaceWith(card);
    if (focused) open.focus();
  } else $("gallery").prepend(card);
  updateCounts();
}

function removeCard(id) {
  const known = cards.get(id);
  if (!known) return;
  URL.revokeObjectURL(known.item.address);
  known.card.remove();
  cards.delete(id);
  updateCounts();
}

export async function remove(item) {
  await store.remove(item.id);
  removeCard(item.id);
}

export async function clear() {
  await store.clear();
  for (const id of [...cards.keys()]) removeCard(id);
}
