// Small helpers. Text from people is only ever set as text.

export const $ = (id) => document.getElementById(id);

export function make(tag, { text, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

// To screen readers.
export function say(text) { $("live").textContent = text; }

export function plural(count, what) { return `${count} ${what}${count === 1 ? "" : "s"}`; }
