// Markdown: the part that models write, as DOM nodes. Its input is hostile: nothing of it becomes HTML or is fetched,
// and every search is bounded or remembered, so that no text makes the page slow.
"use strict";

/** Makes an element. Strings among the children become text, never HTML. */
function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const MAX_DEPTH = 6;
const MARKS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];

function link(address, label) {
  const url = URL.canParse(address) ? new URL(address) : null;
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  return element("a", {href: url.href, target: "_blank", rel: "noopener noreferrer"}, label);
}

/** Appends text with its emphasis, code and links. */
function inline(text, parent, depth = 0) {
  const known = new Map(); // mark -> the last search for it, which holds for every start up to what it found
  function find(mark, from) {
    const last = known.get(mark);
    if (last && last.from <= from && from <= last.at) return last.at;
    const at = text.indexOf(mark, from);
    known.set(mark, {from, at: at < 0 ? Infinity : at});
    return known.get(mark).at;
  }
  function emphasis(at) {
    const [mark, tag] = MARKS.find(([mark]) => text.startsWith(mark, at)) ?? [];
    const start = at + mark?.length, word = mark?.[0] === "_";
    if (!mark || /\s|^$/.test(text.charAt(start)) || (word && /\w/.test(text.charAt(at - 1)))) return null;
    for (let tries = 0, end = find(mark, start + 1); end < text.length && tries < 8; tries++, end = find(mark, end + mark.length)) {
      if (mark.length === 1 && text[end + 1] === mark) { end++; continue; } // a double mark closes no single one
      if (/\s/.test(text[end - 1]) || (word && /\w/.test(text.charAt(end + mark.length)))) continue;
      const node = element(tag);
      inline(text.slice(start, end), node, depth + 1);
      return [node, end + mark.length];
    }
    return null;
  }
  function code(at) {
    const mark = /`{1,3}/y.exec(text.slice(at, at + 3))[0], end = find(mark, at + mark.length);
    if (end > text.length) return null;
    return [element("code", {}, text.slice(at + mark.length, end).replace(/^ (.+) $/, "$1")), end + mark.length];
  }
  function bracket(at) { // [label](address), and the same for an image, which is never fetched
    const start = text[at] === "!" ? at + 2 : at + 1;
    if (text[start - 1] !== "[") return null;
    const middle = find("](", start), end = find(")", middle);
    if (end > middle + 2000 || middle > start + 300 || text.slice(start, middle).includes("[")) return null;
    const node = link(text.slice(middle + 2, end).trim().split(/\s/)[0], text.slice(start, middle));
    return node && [node, end + 1];
  }
  function address(at) {
    const found = /\w/.test(text.charAt(at - 1)) ? null : /https?:\/\/[^\s<>"'`)\]|]+/y.exec(text.slice(at, at + 2000));
    const shown = found?.[0].replace(/[.,;:!?*_]{1,9}$/, ""), node = shown && link(shown, shown);
    return node ? [node, at + shown.length] : null;
  }
  function spanAt(at) {
    switch (text[at]) {
      case "\\": return /[!-/:-@[-`{-~]/.test(text.charAt(at + 1)) ? [text[at + 1], at + 2] : null;
      case "`": return code(at);
      case "[": case "!": return bracket(at);
      case "h": return address(at);
      case "<": return /^<br ?\/?>/i.test(text.slice(at, at + 6)) ? [element("br"), text.indexOf(">", at) + 1] : null;
      default: return emphasis(at);
    }
  }
  const special = /[\\`[!h<*_~]/g;
  let done = 0; // all before it has been appended
  while (depth < MAX_DEPTH && special.test(text)) {
    const at = special.lastIndex - 1, span = spanAt(at);
    if (!span) continue;
    parent.append(text.slice(done, at), span[0]);
    special.lastIndex = done = span[1];
  }
  parent.append(text.slice(done));
}

const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^\s`]*)/, MARKER = /^( *)([-*+]|\d{1,9}[.)])( +|$)/, RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const isTable = (line, next) => line.includes("|") && /^[ |:-]+$/.test(next) && next.includes("-") && next.includes("|");

function kindOf(line, next = "") {
  if (!line.trim()) return "blank";
  if (FENCE.test(line)) return "fence";
  if (/^#{1,6} /.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (/^ {0,3}>/.test(line)) return "quote";
  if (MARKER.test(line)) return /\d/.test(MARKER.exec(line)[2]) ? "ol" : "ul";
  return isTable(line, next) ? "table" : "paragraph";
}

/** Whether lines[at] goes on with the block of this kind that began with `first`; lines[at - 1] is in it. */
function belongs(kind, first, lines, at) {
  const line = lines[at], before = lines[at - 1], here = kindOf(line, lines[at + 1]);
  switch (kind) {
    case "fence": return at === first + 1 || !closes(before, lines[first]);
    case "quote": return here === "quote";
    case "table": return line.includes("|");
    case "paragraph": return here === "paragraph";
    case "ul": case "ol": {
      const indented = /^ {2,}\S/.test(line);
      if (!line.trim()) return /^ {2,}\S/.test(lines[at + 1] ?? "") || kindOf(lines[at + 1] ?? "") === kind;
      return indented || here === kind || (here === "paragraph" && before.trim() !== "");
    }
    default: return false;
  }
}

function closes(line, opening) {
  const mark = FENCE.exec(opening)[1];
  return line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
}

/** Splits lines into blocks: [{kind, lines}]. */
function blocks(lines) {
  const found = [];
  for (let at = 0; at < lines.length;) {
    const first = at, kind = kindOf(lines[at], lines[at + 1]);
    for (at++; at < lines.length && belongs(kind, first, lines, at);) at++;
    if (kind !== "blank") found.push({kind, lines: lines.slice(first, at)});
  }
  return found;
}

function copyButton(text) {
  const button = element("button", {className: "quiet", type: "button"}, "Copy");
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch { button.textContent = "Cannot copy"; } // browsers allow it on https and localhost only
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
  return button;
}

function fence({lines}) {
  const [, , language] = FENCE.exec(lines[0]);
  const closed = lines.length > 1 && closes(lines.at(-1), lines[0]);
  const source = lines.slice(1, closed ? -1 : undefined).join("\n");
  const bar = element("div", {className: "bar"}, element("span", {}, language || "text"), copyButton(() => source));
  return element("div", {className: "code"}, bar, element("pre", {tabIndex: 0}, element("code", {}, source)));
}

function list({kind, lines}, depth) {
  const [, base, number] = MARKER.exec(lines[0]);
  const items = [];
  for (const line of lines) {
    const marker = MARKER.exec(line);
    if (marker && marker[1].length < base.length + 2) items.push({width: marker[0].length, lines: [line.slice(marker[0].length)]});
    else items.at(-1).lines.push(line.slice(Math.min(items.at(-1).width, line.search(/\S|$/))));
  }
  const node = element(kind);
  if (kind === "ol") node.start = parseInt(number, 10);
  for (const item of items) {
    const parts = blocks(item.lines), entry = element("li");
    if (parts[0]?.kind === "paragraph") inline(parts.shift().lines.join("\n"), entry);
    entry.append(...parts.map((part) => block(part, depth + 1)));
    node.append(entry);
  }
  return node;
}

function table({lines}) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
  const sides = cells(lines[1]).map((cell) => (!cell.endsWith(":") ? "" : cell.startsWith(":") ? "center" : "right"));
  const row = (tag) => (line) => element("tr", {}, ...cells(line).map((text, column) => {
    const cell = element(tag);
    cell.style.textAlign = sides[column] ?? "";
    inline(text, cell);
    return cell;
  }));
  return element("div", {className: "scroll", tabIndex: 0}, element("table", {},
    element("thead", {}, row("th")(lines[0])), element("tbody", {}, ...lines.slice(2).map(row("td")))));
}

function block(part, depth) {
  const text = part.lines.join("\n");
  switch (depth < MAX_DEPTH ? part.kind : "paragraph") {
    case "fence": return fence(part);
    case "rule": return element("hr");
    case "ul": case "ol": return list(part, depth);
    case "table": return table(part);
    case "quote": {
      const inner = blocks(part.lines.map((line) => line.replace(/^ {0,3}> ?/, "")));
      return element("blockquote", {}, ...inner.map((one) => block(one, depth + 1)));
    }
    default: {
      const [marks] = /^#*/.exec(part.kind === "heading" ? text : "");
      const node = element(marks ? `h${Math.min(marks.length + 1, 4)}` : "p");
      inline(marks ? text.slice(marks.length).trim() : text, node);
      return node;
    }
  }
}

/** Shows Markdown in a container; blocks that have not changed since the last call are left alone. */
function showMarkdown(text, container) {
  const parts = blocks(text.replaceAll("\t", "    ").split(/\r?\n/));
  parts.forEach((part, index) => {
    const source = part.lines.join("\n"), shown = container.children[index];
    if (shown?.source === source) return;
    const node = Object.assign(block(part, 0), {source});
    if (shown) shown.replaceWith(node);
    else container.append(node);
  });
  while (container.children.length > parts.length) container.lastChild.remove();
}
