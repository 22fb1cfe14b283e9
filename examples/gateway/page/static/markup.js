// An answer's Markdown as elements. Nothing is ever parsed as HTML: what a model or a document says becomes text nodes,
// and links are shown as they are written, because their targets are not ours to vouch for.

const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*(\S(?:[\s\S]*?\S)?)\*\*/g;

/** Show `text` in `parent`, where blocks that have not changed keep their elements, and so a reader's selection. */
export function show(parent, text) {
  const sources = blocks(text);
  let same = 0;
  while (same < sources.length && parent.children[same]?.source === sources[same]) same++;
  while (parent.children.length > same) parent.lastElementChild.remove();
  for (const source of sources.slice(same)) {
    const element = block(source);
    element.source = source;
    parent.append(element);
  }
}

/** The text cut at blank lines, code fences whole. */
function blocks(text) {
  const found = [[]];
  let fence = "";
  for (const line of text.split("\n")) {
    const mark = FENCE.exec(line)?.[1];
    if (!fence && (mark || !line.trim())) found.push([]);
    if (fence || line.trim()) found.at(-1).push(line);
    if (fence && mark?.startsWith(fence)) {
      fence = "";
      found.push([]);
    } else if (!fence && mark) {
      fence = mark;
    }
  }
  return found.filter((lines) => lines.length).map((lines) => lines.join("\n"));
}

function block(source) {
  const lines = source.split("\n");
  if (FENCE.test(source)) return code(lines);
  const heading = /^ {0,3}(#{1,6})\s+(.*)$/.exec(source);
  if (heading) return inline(make(`h${Math.min(6, heading[1].length + 2)}`), heading[2]);
  if (lines.every((line) => /^\s*[-*+]\s+\S/.test(line))) return list("ul", lines, /^\s*[-*+]\s+/);
  if (lines.every((line) => /^\s*\d{1,9}[.)]\s+\S/.test(line))) return list("ol", lines, /^\s*\d+[.)]\s+/);
  return inline(make("p"), source);
}

function code(lines) {
  const closed = lines.length > 1 && FENCE.test(lines.at(-1));
  const inner = make("code");
  inner.textContent = lines.slice(1, closed ? -1 : undefined).join("\n");
  const element = make("pre");
  element.tabIndex = 0; // it scrolls
  element.append(inner);
  return element;
}

function list(kind, lines, mark) {
  const element = make(kind);
  if (kind === "ol") element.start = parseInt(lines[0], 10);
  for (const line of lines) element.append(inline(make("li"), line.replace(mark, "")));
  return element;
}

function inline(parent, text) {
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    parent.append(text.slice(end, match.index));
    const element = make(match[1] ? "code" : "strong");
    element.textContent = match[1] ? match[2] : match[3];
    parent.append(element);
    end = match.index + match[0].length;
  }
  parent.append(text.slice(end));
  return parent;
}

function make(name) {
  return document.createElement(name);
}
