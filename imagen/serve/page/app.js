// The page: what is asked for, and what happens to it.

import * as api from "./api.js";
import * as brush from "./brush.js";
import { $, make, plural, say } from "./dom.js";
import * as gallery from "./gallery.js";
import * as viewer from "./viewer.js";

let server;          // what /api/about says
let given = null;    // a picture to begin with: {blob, mask, name}

function problem(text, where = "problem") { $(where).textContent = text; }

function sizeChosen() { return Number(document.querySelector("#sizes input:checked").value); }

function number(id) { return $(id).value === "" ? undefined : Number($(id).value); }

// What the form says, as the API takes it.
function asked() {
  return {
    prompt: $("prompt").value.trim(),
    negative: $("negative").value.trim() || undefined,
    n: Number($("count").value),
    seed: number("seed"),
    size: `${sizeChosen()}x${sizeChosen()}`,
    steps: number("steps"),
    guidance: number("guidance"),
    sampler: $("sampler").value || undefined,
    output_format: $("format").value,
  };
}

// Asks, shows a card for each picture, and keeps what comes.
async function draw(body, how = "") {
  const stop = new AbortController();
  let left = body.n || 1, job = null;
  const open = new Set(Array(left).keys());
  const cards = [...open].map((index) => gallery.expect(body.prompt, () => {
    open.delete(index);
    cards[index].remove();
    if (open.size === 0) stop.abort();
    say("Cancelled");
  }));
  problem("");
  say(`Drawing ${plural(left, "picture")}`);
  const each = (work) => open.forEach((index) => work(cards[index], index));
  try {
    await api.generate(body, async (event) => {
      if (event.type === "job") job = event.id;
      if (event.type === "queued") each((card) => card.waits(event.position));
      if (!open.has(event.number)) return;
      if (event.type === "preview") cards[event.number].preview(event);
      if (event.type === "picture") {
        open.delete(event.number);
        left -= 1;
        if (event.state !== "done") {
          cards[event.number].failed(api.sentence(event.error || "it was cancelled"));
          return;
        }
        const blob = await api.picture(event.url);
        await cards[event.number].done({
          blob, how, prompt: body.prompt, seed: event.seed, command: event.command, width: event.width,
          height: event.height, made: Date.now(), negative: body.negative, sampler: body.sampler, steps: body.steps,
          guidance: body.guidance,
        });
      }
    }, stop.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    each((card) => card.remove());
    if (error.status === 401) askKey();
    problem(error instanceof api.Problem ? error.message : `Something is wrong with this page: ${error.message}`);
  }
}

// Settings of a picture that what is made of it should share.
function settingsOf(item) {
  return { negative: item.negative, sampler: item.sampler, steps: item.steps, guidance: item.guidance, output_format: $("format").value };
}

const actions = {
  again(item) { draw({ ...settingsOf(item), prompt: item.prompt, size: `${item.width}x${item.height}`, n: 1 }); },
  variations(item) {
    const n = Math.min(4, server.limits.n);
    draw({ ...settingsOf(item), prompt: item.prompt, size: `${item.width}x${item.height}`, n,
      variation: { seed: item.seed, amount: 0.3 } }, `a variation of seed ${item.seed}`);
  },
  async upscale(item) {
    draw({ prompt: item.prompt, start: await api.base64(item.blob), output_format: $("format").value }, "upscaled");
  },
  paint(item) { paint(item.blob, item.prompt, item); },
  reuse(item) { $("prompt").value = item.prompt; $("prompt").focus(); },
};

async function paint(blob, prompt, item) {
  $("brush-prompt").value = prompt;
  problem("", "brush-problem");
  await brush.begin(blob);
  $("brush").showModal();
  $("canvas").focus();
  $("brush-form").onsubmit = async (event) => {
    event.preventDefault();
    const mask = brush.result();
    if (mask === null) {
      problem("Paint over the part that should change first.", "brush-problem");
      return;
    }
    $("brush").close();
    const size = item ? `${item.width}x${item.height}` : undefined;
    draw({ ...(item ? settingsOf(item) : asked()), prompt: $("brush-prompt").value.trim(), n: 1, size,
      init: await api.base64(blob), mask }, "a part drawn anew");
  };
}

async function submit(event) {
  event.preventDefault();
  if (!server) { await start(); if (!server) return; }
  const body = asked();
  if (given) {
    body.init = await api.base64(given);
    body.strength = Number($("strength").value) / 100;
  } else if (!body.prompt && server.text) {
    problem("Say first what you want to see.");
    $("prompt").focus();
    return;
  }
  if (body.prompt.length > server.limits.prompt) {
    problem(`That is too long: at most ${server.limits.prompt} characters.`);
    return;
  }
  draw(body, given ? "from a picture" : "");
}

function give(file) {
  if (!file) return;
  if (!["image/png", "image/jpeg", "image/webp"].includes(file.type)) {
    problem("That is no PNG, JPEG or WebP picture.");
    return;
  }
  if (server && file.size * 4 / 3 > server.limits.body - 10_000) {
    problem(`That file is too large: at most ${Math.floor(server.limits.body * 0.74 / 2 ** 20)} MiB.`);
    return;
  }
  problem("");
  given = file;
  URL.revokeObjectURL($("given-picture").src);
  $("given-picture").src = URL.createObjectURL(file);
  $("given-text").textContent = "Your drawing begins with this picture. Settings say how much of it may change.";
  $("given").hidden = false;
}

function askKey() {
  $("key-button").hidden = false;
  $("key-value").value = api.key();
  $("key").showModal();
}

async function start() {
  try {
    server = await api.about();
  } catch (error) {
    if (error.status === 401) askKey();
    else problem(error.message);
    return;
  }
  $("key-button").hidden = !server.keys;
  $("model").textContent = server.model;
  document.title = `imagen: ${server.model}`;
  const resolutions = server.stages.map((stage) => stage.resolution);
  const chosen = resolutions.includes(256) ? 256 : resolutions.at(-1);
  $("sizes").replaceChildren(...resolutions.map((resolution) => make("label", {},
    make("input", { type: "radio", name: "size", value: resolution, checked: resolution === chosen }),
    make("span", { text: String(resolution), title: `${resolution} by ${resolution} pixels` }))));
  const counts = [1, 2, 4, 8].filter((count) => count <= server.limits.n);
  $("count").replaceChildren(...counts.map((count) => make("option", { text: String(count), value: count })));
  $("steps").max = server.limits.steps;
  $("prompt").disabled = !server.text;
  if (!server.text) $("prompt").placeholder = "This cascade was trained without text: it draws what it likes.";
  viewer.allow(resolutions.at(-1));
}

$("composer").addEventListener("submit", submit);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
$("file").addEventListener("change", () => { give($("file").files[0]); $("file").value = ""; });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => { event.preventDefault(); give(event.dataTransfer.files[0]); });
addEventListener("paste", (event) => give([...event.clipboardData.files][0]));
$("given-remove").addEventListener("click", () => { given = null; $("given").hidden = true; $("file").focus(); });
$("given-paint").addEventListener("click", () => paint(given, $("prompt").value.trim(), null));
$("given-upscale").addEventListener("click", async () => {
  draw({ prompt: $("prompt").value.trim(), start: await api.base64(given), output_format: $("format").value }, "upscaled");
});
$("strength").addEventListener("input", () => { $("strength-value").textContent = `${$("strength").value} %`; });
$("clear").addEventListener("click", async () => {
  if (confirm("Delete all pictures that this browser keeps?")) { await gallery.clear(); say("All deleted"); $("prompt").focus(); }
});
$("key-button").addEventListener("click", askKey);
$("key-form").addEventListener("submit", () => { api.setKey($("key-value").value.trim()); problem(""); start(); });
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
brush.setUp();
viewer.setUp(actions);
gallery.setUp(viewer.open);
start();
