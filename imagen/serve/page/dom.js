// Helpers for the DOM. Text from users is set as text, never as HTML.

export const $ = (id) => document.getElementById(id);

export function make(tag, { text, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

// Announce a text to screen readers.
export function announce(text) { $("live").textContent = text; }

export function plural(count, noun) { return `${count} ${noun}${count === 1 ? "" : "s"}`; }
