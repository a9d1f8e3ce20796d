// The API, from its OpenAPI document.

import { $, make } from "./dom.js";

const answer = await fetch("/openapi.json");
const schema = await answer.json();
$("about").textContent = schema.info.description;

function resolved(part) {
  return part && part.$ref ? resolved(part.$ref.split("/").slice(1).reduce((at, name) => at[name], schema)) : part;
}

function kind(field) {
  const part = resolved(field) || {};
  if (part.anyOf) return [...new Set(part.anyOf.map(kind))].filter((name) => name !== "null").join(" or ");
  if (part.enum) return part.enum.join(", ");
  if (part.type === "array") return `list of ${kind(part.items)}`;
  return part.const ?? part.type ?? "";
}

function table(title, fields, required = []) {
  const rows = Object.entries(fields).map(([name, field]) => make("tr", {},
    make("td", {}, make("code", { text: name + (required.includes(name) ? " *" : "") })),
    make("td", { text: kind(field) }), make("td", { text: resolved(field)?.description || "" })));
  return make("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: title }, make("table", {}, make("thead", {}, make("tr", {},
    make("th", { text: title }), make("th", { text: "kind" }), make("th", { text: "what" }))), make("tbody", {}, ...rows)));
}

for (const [path, methods] of Object.entries(schema.paths)) {
  for (const [method, route] of Object.entries(methods)) {
    const article = make("article", {},
      make("h2", {}, make("span", { className: "method", text: method.toUpperCase() }), " ", make("code", { text: path })),
      make("p", { text: route.description || route.summary || "" }));
    for (const [type, content] of Object.entries(route.requestBody?.content || {})) {
      const body = resolved(content.schema);
      if (body?.properties) article.append(table(type, body.properties, body.required));
    }
    $("routes").append(article);
  }
}
