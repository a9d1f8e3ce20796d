// The page: the form, requests, and actions on images.

import * as api from "./api.js";
import * as brush from "./brush.js";
import { $, announce, make, plural } from "./dom.js";
import * as gallery from "./gallery.js";
import * as viewer from "./viewer.js";

let server;             // the response of /api/about
let inputImage = null;  // a file for image-to-image

function showProblem(text, where = "problem") { $(where).textContent = text; }

function chosenSize() { return Number(document.querySelector("#sizes input:checked").value); }

// Return the value of a setting; undefined where it is empty, or fast sampling does not use it.
function setting(id) { return $(id).disabled ? undefined : $(id).value.trim() || undefined; }

function number(id) { return setting(id) === undefined ? undefined : Number(setting(id)); }

function hasFast() { return server?.stages.some((stage) => stage.fast) ?? false; }

// Disable the settings that fast sampling does not use.
function updateFast() {
  const fast = $("fast").checked;
  const guided = server.stages.some((stage) => (stage.fast || stage).guidance !== 1);
  for (const id of ["steps", "guidance", "sampler"]) $(id).disabled = fast;
  $("negative").disabled = fast && !guided;
  $("fast-note").hidden = !fast;
  $("fast-note").textContent = fast ? `Fast sampling has its own steps, guidance scale and sampler${guided ? "" : ", and uses no negative prompt"}.` : "";
}

// Return the form as fields of the API.
function formFields() {
  return {
    prompt: $("prompt").value.trim(),
    negative: setting("negative"),
    n: Number($("count").value),
    seed: number("seed"),
    size: `${chosenSize()}x${chosenSize()}`,
    fast: $("fast").checked || undefined,
    steps: number("steps"),
    guidance: number("guidance"),
    sampler: setting("sampler"),
    output_format: $("format").value,
  };
}

// Request images, show a card for each, and store the finished ones.
// how: what they are made from besides prompt and seed; empty: nothing.
async function generate(body, how = "") {
  const stop = new AbortController();
  const count = body.n || 1;
  const open = new Set(Array(count).keys());
  const cards = [...open].map((index) => gallery.addPending(body.prompt, () => {
    open.delete(index);
    cards[index].remove();
    if (open.size === 0) stop.abort();
    announce("Cancelled");
  }));
  let warning;
  showProblem("");
  showProblem("", "warning");
  announce(`Generating ${plural(count, "image")}`);
  const each = (work) => open.forEach((index) => work(cards[index], index));
  try {
    await api.generate(body, async (event) => {
      if (event.type === "warning") {
        warning = api.sentence(event.warning);
        showProblem(warning, "warning");
      }
      if (event.type === "queued") each((card) => card.queued(event.position));
      if (!open.has(event.number)) return;
      if (event.type === "preview") cards[event.number].preview(event);
      if (event.type === "picture") {
        open.delete(event.number);
        if (event.state !== "done") {
          cards[event.number].failed(api.sentence(event.error || "the request was cancelled"));
          return;
        }
        const blob = await api.picture(event.url);
        await cards[event.number].done({
          blob, how, prompt: body.prompt, seed: event.seed, command: event.command, width: event.width,
          height: event.height, made: Date.now(), negative: body.negative, sampler: body.sampler, steps: body.steps,
          guidance: body.guidance, fast: body.fast, variation: body.variation, warning,
        });
      }
    }, stop.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    each((card) => card.remove());
    if (error.status === 401) askKey();
    showProblem(error instanceof api.RequestError ? error.message : `Error in this page: ${error.message}`);
  }
}

// Whether to sample like an image, which may be from another cascade.
function fastOf(item) { return (item.fast && hasFast()) || undefined; }

// Return the settings of an image, for new images that are made from it.
function settingsOf(item) {
  return { negative: item.negative, sampler: item.sampler, steps: item.steps, guidance: item.guidance, fast: fastOf(item), output_format: $("format").value };
}

const actions = {
  again(item) { generate({ ...settingsOf(item), prompt: item.prompt, size: `${item.width}x${item.height}`, n: 1 }); },
  variations(item) {
    const n = Math.min(4, server.limits.n);
    generate({ ...settingsOf(item), prompt: item.prompt, size: `${item.width}x${item.height}`, n,
      variation: { seed: item.seed, amount: 0.3 } }, `a variation of seed ${item.seed}`);
  },
  async upscale(item) {
    generate({ prompt: item.prompt, start: await api.base64(item.blob), fast: fastOf(item), output_format: $("format").value }, "upscaled");
  },
  paint(item) { paint(item.blob, item.prompt, item); },
  reuse(item) { $("prompt").value = item.prompt; $("prompt").focus(); },
};

async function paint(blob, prompt, item) {
  $("brush-prompt").value = prompt;
  showProblem("", "brush-problem");
  await brush.begin(blob);
  $("brush").showModal();
  $("canvas").focus();
  $("brush-form").onsubmit = async (event) => {
    event.preventDefault();
    const mask = brush.maskUrl();
    if (mask === null) {
      showProblem("Paint over the part that should change.", "brush-problem");
      return;
    }
    $("brush").close();
    const size = item ? `${item.width}x${item.height}` : undefined;
    generate({ ...(item ? settingsOf(item) : formFields()), prompt: $("brush-prompt").value.trim(), n: 1, size,
      init: await api.base64(blob), mask }, "regenerated in part");
  };
}

async function submit(event) {
  event.preventDefault();
  if (!server) { await start(); if (!server) return; }
  const body = formFields();
  if (inputImage) {
    body.init = await api.base64(inputImage);
    body.strength = Number($("strength").value) / 100;
  } else if (!body.prompt && server.text) {
    showProblem("Enter a prompt.");
    $("prompt").focus();
    return;
  }
  if (body.prompt.length > server.limits.prompt) {
    showProblem(`The prompt is too long; the limit is ${server.limits.prompt} characters.`);
    return;
  }
  generate(body, inputImage ? "from an image" : "");
}

function useImage(file) {
  if (!file) return;
  if (!["image/png", "image/jpeg", "image/webp"].includes(file.type)) {
    showProblem("The file is not a PNG, JPEG or WebP image.");
    return;
  }
  if (server && file.size * 4 / 3 > server.limits.body - 10_000) {
    showProblem(`The file is too large; the limit is ${Math.floor(server.limits.body * 0.74 / 2 ** 20)} MiB.`);
    return;
  }
  showProblem("");
  inputImage = file;
  URL.revokeObjectURL($("input-image-view").src);
  $("input-image-view").src = URL.createObjectURL(file);
  $("input-image-text").textContent = "New images start from this one. Strength, in the settings, determines how much changes.";
  $("input-image").hidden = false;
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
    else showProblem(error.message);
    return;
  }
  $("key-button").hidden = !server.keys;
  $("model").textContent = server.model;
  document.title = `imagen: ${server.model}`;
  const resolutions = server.stages.map((stage) => stage.resolution);
  const initial = resolutions.includes(256) ? 256 : resolutions.at(-1);
  $("sizes").replaceChildren(...resolutions.map((resolution) => make("label", {},
    make("input", { type: "radio", name: "size", value: resolution, checked: resolution === initial }),
    make("span", { text: String(resolution), title: `${resolution} by ${resolution} pixels` }))));
  const counts = [1, 2, 4, 8].filter((count) => count <= server.limits.n);
  $("count").replaceChildren(...counts.map((count) => make("option", { text: String(count), value: count })));
  $("sampler").replaceChildren($("sampler").options[0], ...server.samplers.map((name) => make("option", { text: name })));
  $("steps").max = server.limits.steps;
  $("prompt").disabled = !server.text;
  if (!server.text) $("prompt").placeholder = "This cascade was trained without text.";
  $("fast-switch").hidden = !hasFast();
  $("fast").checked &&= hasFast();
  updateFast();
  viewer.setLargest(resolutions.at(-1));
}

$("composer").addEventListener("submit", submit);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
$("file").addEventListener("change", () => { useImage($("file").files[0]); $("file").value = ""; });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => { event.preventDefault(); useImage(event.dataTransfer.files[0]); });
addEventListener("paste", (event) => useImage([...event.clipboardData.files][0]));
$("input-image-remove").addEventListener("click", () => { inputImage = null; $("input-image").hidden = true; $("file").focus(); });
$("input-image-paint").addEventListener("click", () => paint(inputImage, $("prompt").value.trim(), null));
$("input-image-upscale").addEventListener("click", async () => {
  const { prompt, fast, output_format } = formFields();
  generate({ prompt, start: await api.base64(inputImage), fast, output_format }, "upscaled");
});
$("fast").addEventListener("change", updateFast);
$("strength").addEventListener("input", () => { $("strength-value").textContent = `${$("strength").value} %`; });
$("clear").addEventListener("click", async () => {
  if (confirm("Delete all images stored in this browser?")) { await gallery.clear(); announce("All deleted"); $("prompt").focus(); }
});
$("key-button").addEventListener("click", askKey);
$("key-form").addEventListener("submit", () => { api.setKey($("key-value").value.trim()); showProblem(""); start(); });
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
