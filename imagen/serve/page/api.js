// Requests to the server, events and the API key. Errors are sentences.

const KEY = "imagen-key";

export class RequestError extends Error {
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

async function request(url, options = {}) {
  let response;
  try {
    response = await fetch(url, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The server cannot be reached. Is it running?", 0);
  }
  if (response.ok) return response;
  let message = `The server responded with status ${response.status}.`;
  try {
    message = sentence((await response.json()).error.message);
  } catch { /* not JSON: maybe from a proxy */ }
  throw new RequestError(message, response.status);
}

export function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

export async function about() { return (await request("/api/about")).json(); }

export async function picture(url) { return (await request(url)).blob(); }

// Generate images, and call `onEvent` with each event. Aborting by `signal` cancels the request on the server.
export async function generate(body, onEvent, signal) {
  const response = await request("/api/generate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
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
      await onEvent(event);
    }
  }
  if (!ended) throw new RequestError("The connection was lost before the image was finished. Try again.", 0);
}

export async function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new RequestError("That file cannot be read.", 0));
    reader.readAsDataURL(blob);
  });
}
