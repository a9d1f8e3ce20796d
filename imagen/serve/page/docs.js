// Render the API reference from the OpenAPI document.

import { $, make } from "./dom.js";

const response = await fetch("/openapi.json");
const schema = await response.json();
$("about").textContent = schema.info.description;

function resolved(part) {
  return part && part.$ref ? resolved(part.$ref.split("/").slice(1).reduce((at, name) => at[name], schema)) : part;
}

function typeOf(field) {
  const part = resolved(field) || {};
  if (part.anyOf) return [...new Set(part.anyOf.map(typeOf))].filter((name) => name !== "null").join(" or ");
  if (part.enum) return part.enum.join(", ");
  if (part.type === "array") return `list of ${typeOf(part.items)}`;
  return part.const ?? part.type ?? "";
}

function table(title, fields, required = []) {
  const rows = Object.entries(fields).map(([name, field]) => make("tr", {},
    make("td", {}, make("code", { text: name + (required.includes(name) ? " *" : "") })),
    make("td", { text: typeOf(field) }), make("td", { text: resolved(field)?.description || "" })));
  return make("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: title }, make("table", {}, make("thead", {}, make("tr", {},
    make("th", { text: title }), make("th", { text: "type" }), make("th", { text: "description" }))), make("tbody", {}, ...rows)));
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
