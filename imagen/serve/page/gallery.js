// Cards: pictures on their way, and those that are there.

import { $, make, plural, say } from "./dom.js";
import * as store from "./store.js";

const BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";
const cards = new Map(); // of kept items, by id
let onOpen = () => {};

export async function setUp(open) {
  onOpen = open;
  for (const item of await store.all()) show(item);
  counted();
}

function counted() {
  const working = document.querySelectorAll("#gallery .card:not(.kept)").length;
  $("empty").hidden = cards.size + working > 0;
  $("clear").hidden = cards.size === 0;
  $("kept").textContent = cards.size ? `${plural(cards.size, "picture")}, kept in this browser` : "";
}

// A card for a picture that is asked for; `cancel` ends it.
export function expect(prompt, cancel) {
  const picture = make("img", { className: "picture", src: BLANK, alt: "" });
  const words = make("span", { className: "words", text: prompt || "(no prompt)" });
  const state = make("span", { text: "Waiting" });
  const button = make("button", { type: "button", text: "Cancel", ariaLabel: `Cancel ${prompt}` });
  const progress = make("progress", { max: 1, value: 0, ariaLabel: `Progress of ${prompt || "the picture"}` });
  const line = make("div", { className: "state" }, state, button);
  const card = make("li", { className: "card waiting" }, picture,
    make("div", { className: "caption" }, words, progress, line));
  button.addEventListener("click", cancel);
  $("gallery").prepend(card);
  counted();
  return {
    waits(position) {
      state.textContent = position > 1 ? `${plural(position - 1, "picture")} before yours` : "Yours is next";
    },
    preview(event) {
      card.classList.remove("waiting");
      picture.src = event.preview;
      picture.alt = `Preview of ${prompt}`;
      progress.value = event.progress;
      state.textContent = `${event.resolution} px, ${Math.round(event.progress * 100)} %`;
    },
    async done(item) {
      for (const id of await store.add(item)) forget(id);
      show(item, card);
      say(`Finished: ${prompt || "a picture"}`);
    },
    failed(message) {
      card.classList.remove("waiting");
      card.classList.add("failed");
      progress.remove();
      state.textContent = message;
      button.textContent = "Remove";
      button.ariaLabel = "Remove this message";
      button.onclick = () => { card.remove(); counted(); $("prompt").focus(); };
    },
    remove() {
      const focused = card.contains(document.activeElement);
      card.remove();
      counted();
      if (focused) $("prompt").focus();
    },
  };
}

function show(item, before) {
  item.address ||= URL.createObjectURL(item.blob);
  const picture = make("img", { className: "picture", src: item.address, alt: item.prompt || "A picture without a prompt" });
  const open = make("button", { type: "button", className: "open" }, picture);
  open.addEventListener("click", () => onOpen(item));
  const words = make("span", { className: "words", text: item.prompt || "(no prompt)" });
  const card = make("li", { className: "card kept" }, open, make("div", { className: "caption" }, words));
  cards.set(item.id, { card, item });
  if (before) {
    const focused = before.contains(document.activeElement);
    before.replaceWith(card);
    if (focused) open.focus();
  } else $("gallery").prepend(card);
  counted();
}

function forget(id) {
  const known = cards.get(id);
  if (!known) return;
  URL.revokeObjectURL(known.item.address);
  known.card.remove();
  cards.delete(id);
  counted();
}

export async function remove(item) {
  await store.remove(item.id);
  forget(item.id);
}

export async function clear() {
  await store.clear();
  for (const id of [...cards.keys()]) forget(id);
}
