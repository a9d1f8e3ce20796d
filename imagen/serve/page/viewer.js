// One picture, large, and what can be done with it.

import { sentence } from "./api.js";
import { $, make, say } from "./dom.js";
import * as gallery from "./gallery.js";

let item, actions, largest;

// largest: the side of the largest pictures that can be made.
export function allow(side) { largest = side; }

export function setUp(available) {
  actions = available;
  const on = (id, work) => $(id).addEventListener("click", () => work(item));
  for (const name of ["again", "variations", "upscale", "reuse"]) {
    on(name, (shown) => { $("viewer").close(); actions[name](shown); });
  }
  on("paint", (shown) => { $("viewer").close(); actions.paint(shown); });
  on("delete", async (shown) => { $("viewer").close(); await gallery.remove(shown); say("Deleted"); $("gallery").focus(); });
  on("copy", copy);
}

export function open(shown) {
  item = shown;
  $("viewer-picture").src = item.address;
  $("viewer-picture").alt = item.prompt || "A picture without a prompt";
  $("viewer-title").textContent = item.prompt || "(no prompt)";
  const facts = [["Size", `${item.width} × ${item.height}`], ["Seed", item.seed], ["Made", new Date(item.made).toLocaleString()]];
  if (item.how) facts.push(["How", item.how]);
  $("viewer-facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })]));
  $("command").textContent = item.command || `imagen sample CASCADE --from ${fileName(item)} --out again`;
  $("upscale").disabled = Math.min(item.width, item.height) >= largest;
  $("upscale").title = $("upscale").disabled ? "It is as large as this cascade makes pictures" : "";
  $("download").href = item.address;
  $("download").download = fileName(item);
  $("viewer").showModal();
}

export function fileName(shown) {
  const words = (shown.prompt || "picture").normalize("NFKD").replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60);
  const kind = shown.blob.type.split("/")[1] || "png";
  return `${words || "picture"}-${shown.seed}.${kind}`;
}

async function copy() {
  const text = $("command").textContent;
  try {
    await navigator.clipboard.writeText(text);
    say("The command is in the clipboard");
    $("copy").textContent = "Copied";
    setTimeout(() => { $("copy").textContent = "Copy command"; }, 2000);
  } catch (error) {
    const range = document.createRange(); // where a browser keeps its clipboard to itself: marked, to be copied by hand
    range.selectNodeContents($("command"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    say(sentence(`it is marked: copy it with the keyboard (${error.name})`));
  }
}
