// The server: requests, events, keys. Errors are sentences.

const KEY = "imagen-key";

export class Problem extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function key() { return localStorage.getItem(KEY) || ""; }
export function setKey(value) { localStorage.setItem(KEY, value); }

function headers(more = {}) {
  return key() ? { ...more, Authorization: `Bearer ${key()}` } : more;
}

async function ask(url, options = {}) {
  let answer;
  try {
    answer = await fetch(url, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached. Is it still running?", 0);
  }
  if (answer.ok) return answer;
  let message = `The server answered with ${answer.status}.`;
  try {
    message = sentence((await answer.json()).error.message);
  } catch { /* not from our server: a proxy, perhaps */ }
  throw new Problem(message, answer.status);
}

export function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

export async function about() { return (await ask("/api/about")).json(); }

export async function picture(url) { return (await ask(url)).blob(); }

// Draws, and calls `on` with each event. Leaving it by `signal` cancels the request on the server.
export async function generate(body, on, signal) {
  const answer = await ask("/api/generate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", ended = false;
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      break;
    }
    if (piece.done) break;
    text += piece.value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const line = text.slice(0, end).split("\n").find((each) => each.startsWith("data: "));
      text = text.slice(end + 2);
      if (!line) continue;
      const event = JSON.parse(line.slice(6));
      ended ||= event.type === "end";
      await on(event);
    }
  }
  if (!ended) throw new Problem("The connection broke before the picture was finished. Try again.", 0);
}

export async function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Problem("That file cannot be read.", 0));
    reader.readAsDataURL(blob);
  });
}
