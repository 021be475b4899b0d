// Elements made without markup: whatever a name from the network holds, it stays text.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; strings become text, null is left out. */
export function element(tag, attributes = {}, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), attributes, children);
}

/** A pair of a description list; `name` is a list of what stands in it. */
export function fact(name, value) {
  return element("div", {}, element("dt", {}, ...name), element("dd", {}, value));
}

/** A bar that is filled to `share`, beside a text that says how far. */
export function meter(share) {
  const fill = element("span");
  fill.style.width = `${Math.min(100 * share, 100)}%`;
  return element("span", { class: "meter", "aria-hidden": "true" }, fill);
}

export const byId = (id) => document.getElementById(id);

/** Set the text only if it differs: what a reader has selected stays selected. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function dress(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
