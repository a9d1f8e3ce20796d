// The dialog that shows one image, with actions on it.

import { sentence } from "./api.js";
import { $, announce, make } from "./dom.js";
import * as gallery from "./gallery.js";

let item, actions, largest;

// side: of the largest images that the cascade makes, in pixels.
export function setLargest(side) { largest = side; }

export function setUp(available) {
  actions = available;
  const on = (id, work) => $(id).addEventListener("click", () => work(item));
  for (const name of ["again", "variations", "upscale", "reuse"]) {
    on(name, (shown) => { $("viewer").close(); actions[name](shown); });
  }
  on("paint", (shown) => { $("viewer").close(); actions.paint(shown); });
  on("delete", async (shown) => { $("viewer").close(); await gallery.remove(shown); announce("Deleted"); $("gallery").focus(); });
  on("copy", copy);
}

export function open(shown) {
  item = shown;
  $("viewer-picture").src = item.address;
  $("viewer-picture").alt = item.prompt || "Image without a prompt";
  $("viewer-title").textContent = item.prompt || "(no prompt)";
  const facts = [["Size", `${item.width} × ${item.height}`], ["Seed", seedOf(item)], ["Created", new Date(item.made).toLocaleString()]];
  if (item.how) facts.push(["Source", item.how]);
  if (item.fast) facts.push(["Sampling", "fast"]);
  if (item.warning) facts.push(["Note", item.warning]);
  $("viewer-facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })]));
  const regenerates = item.command || item.blob.type === "image/png"; // other formats contain no provenance
  $("command").textContent = item.command || (regenerates ? `imagen sample CASCADE --from ${fileName(item)} --out again`
    : "No command regenerates this file. To be able to regenerate such images, generate them as PNG.");
  $("copy").disabled = !regenerates;
  $("variations").disabled = Boolean(item.how);
  $("variations").title = item.how ? `Variations need an image that is made from its prompt and seed alone; this one is ${item.how}` : "";
  $("upscale").disabled = Math.min(item.width, item.height) >= largest;
  $("upscale").title = $("upscale").disabled ? "This is the largest size of this cascade" : "";
  $("download").href = item.address;
  $("download").download = fileName(item);
  $("viewer").showModal();
}

function seedOf({ seed, variation }) {
  return variation ? `${variation.seed}, varied by ${Math.round(variation.amount * 100)} % with seed ${seed}` : seed;
}

export function fileName(shown) {
  const words = (shown.prompt || "image").normalize("NFKD").replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60);
  const kind = shown.blob.type.split("/")[1] || "png";
  return `${words || "image"}-${shown.seed}.${kind}`;
}

async function copy() {
  const text = $("command").textContent;
  try {
    await navigator.clipboard.writeText(text);
    announce("Command copied");
    $("copy").textContent = "Copied";
    setTimeout(() => { $("copy").textContent = "Copy command"; }, 2000);
  } catch (error) {
    const range = document.createRange(); // the browser denies access to the clipboard: select the text instead
    range.selectNodeContents($("command"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    announce(sentence(`the command is selected; copy it with the keyboard (${error.name})`));
  }
}
