// Paint a mask on an image by mouse, finger or keyboard. The white part of the mask is regenerated.

import { $, announce } from "./dom.js";

const INK = "rgba(255, 64, 129, 0.55)";
let canvas, context, picture, mask, ink, strokes, cursor, painting = false;

export function setUp() {
  canvas = $("canvas");
  context = canvas.getContext("2d");
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    strokes.push(ink.getImageData(0, 0, mask.width, mask.height));
    if (strokes.length > 20) strokes.shift();
    painting = true;
    move(event);
  });
  canvas.addEventListener("pointermove", (event) => painting && move(event));
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { painting = false; });
  canvas.addEventListener("keydown", onKey);
  $("undo").addEventListener("click", undo);
  $("invert").addEventListener("click", invert);
}

export async function begin(blob) {
  picture = await createImageBitmap(blob);
  canvas.width = picture.width * Math.max(1, Math.round(768 / picture.width));
  canvas.height = canvas.width * picture.height / picture.width;
  canvas.style.aspectRatio = `${picture.width} / ${picture.height}`;
  mask = document.createElement("canvas");
  [mask.width, mask.height] = [canvas.width, canvas.height];
  ink = mask.getContext("2d", { willReadFrequently: true });
  strokes = [];
  cursor = { x: canvas.width / 2, y: canvas.height / 2 };
  draw();
}

function radius() { return $("brush-size").value / 100 * canvas.width / 2; }

function move(event) {
  const box = canvas.getBoundingClientRect();
  const to = {
    x: (event.clientX - box.left) * canvas.width / box.width,
    y: (event.clientY - box.top) * canvas.height / box.height,
  };
  paint(event.type === "pointerdown" ? to : cursor, to);
}

function paint(from, to) {
  ink.lineCap = ink.lineJoin = "round";
  ink.lineWidth = radius() * 2;
  ink.strokeStyle = "white";
  ink.beginPath();
  ink.moveTo(from.x, from.y);
  ink.lineTo(to.x + 0.01, to.y);
  ink.stroke();
  cursor = to;
  draw();
}

function onKey(event) {
  const step = canvas.width / (event.shiftKey ? 10 : 40);
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (moves[event.key]) {
    const [dx, dy] = moves[event.key];
    cursor = {
      x: Math.min(Math.max(cursor.x + dx * step, 0), canvas.width),
      y: Math.min(Math.max(cursor.y + dy * step, 0), canvas.height),
    };
    announce(`${Math.round(cursor.x / canvas.width * 100)} % from the left, ${Math.round(cursor.y / canvas.height * 100)} % from the top`);
  } else if (event.key === " ") {
    strokes.push(ink.getImageData(0, 0, mask.width, mask.height));
    paint(cursor, cursor);
    announce("Painted");
  } else if (event.key === "+" || event.key === "-") {
    $("brush-size").value = Number($("brush-size").value) + (event.key === "+" ? 2 : -2);
  } else return;
  event.preventDefault();
  draw(true);
}

function undo() {
  if (strokes.length) ink.putImageData(strokes.pop(), 0, 0);
  draw();
}

function invert() {
  strokes.push(ink.getImageData(0, 0, mask.width, mask.height));
  ink.globalCompositeOperation = "xor";
  ink.fillStyle = "white";
  ink.fillRect(0, 0, mask.width, mask.height);
  ink.globalCompositeOperation = "source-over";
  draw();
}

function draw(withCursor = false) {
  context.imageSmoothingEnabled = picture.width >= 256;
  context.globalCompositeOperation = "source-over";
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const tinted = document.createElement("canvas");
  [tinted.width, tinted.height] = [canvas.width, canvas.height];
  const tint = tinted.getContext("2d");
  tint.drawImage(mask, 0, 0);
  tint.globalCompositeOperation = "source-in";
  tint.fillStyle = INK;
  tint.fillRect(0, 0, tinted.width, tinted.height);
  context.drawImage(tinted, 0, 0);
  if (!withCursor) return;
  for (const [colour, width] of [["black", 5], ["white", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.arc(cursor.x, cursor.y, radius(), 0, 7);
    context.stroke();
  }
}

// Return the mask as the data URL of a PNG, white on black; null if nothing is painted.
export function maskUrl() {
  const data = ink.getImageData(0, 0, mask.width, mask.height).data;
  if (!data.some((value, index) => index % 4 === 3 && value > 127)) return null;
  const whole = document.createElement("canvas");
  [whole.width, whole.height] = [mask.width, mask.height];
  const paper = whole.getContext("2d");
  paper.fillStyle = "black";
  paper.fillRect(0, 0, whole.width, whole.height);
  paper.drawImage(mask, 0, 0);
  return whole.toDataURL("image/png");
}
