// "{red|blue} circle" picks one of the two each time that Run is pressed. The front end does so for the widgets of a
// node, but not for a widget that a subgraph shows on its front: there the text would reach the server as it is.
import { app } from "../../../scripts/app.js";

const COMMENT = /\/\*[^]*?\*\/|\/\/.*/g;
const CHOICE = /(^|[^\\])\{((?:\\.|[^{}\\])*)\}/; // the innermost braces; \{ is a brace
const ESCAPED = /\\(?=[{|}])/g;

// As the front end does it, comments and escaped braces included.
function choose(text) {
  text = text.replace(COMMENT, "");
  let found;
  while ((found = text.match(CHOICE))) {
    const options = found[2].split(/(?<!\\)\|/);
    const option = options[Math.floor(Math.random() * options.length)];
    const start = found.index + found[1].length;
    text = text.slice(0, start) + option + text.slice(found.index + found[0].length);
  }
  return text.replace(ESCAPED, "");
}

// The node of an entry of the prompt; its key is the way there through the subgraphs: "12:3".
function nodeAt(graph, [id, ...inside]) {
  const node = graph?.getNodeById(id);
  return inside.length ? nodeAt(node?.subgraph, inside) : node;
}

// Whether a text with choices comes from the front of a subgraph. In all others the front end has chosen already: what
// looks like a choice there was escaped.
function isOnFront(node, name) {
  if (!node?.widgets?.find((widget) => widget.name === name)?.dynamicPrompts) return false;
  const link = node.inputs.find((input) => input.name === name)?.link;
  return link != null && Boolean(node.graph.getLink(link)?.originIsIoNode);
}

app.registerExtension({
  name: "WanCore.Wildcards",
  setup() {
    const graphToPrompt = app.graphToPrompt;
    app.graphToPrompt = async function (graph = app.rootGraph ?? app.graph, ...options) {
      const made = await graphToPrompt.call(this, graph, ...options);
      for (const [key, { class_type: type, inputs }] of Object.entries(made.output)) {
        if (!type?.startsWith("WanCore")) continue; // a node that is not installed has none
        const node = nodeAt(graph, key.split(":"));
        for (const [name, value] of Object.entries(inputs)) {
          if (typeof value === "string" && isOnFront(node, name)) inputs[name] = choose(value);
        }
      }
      return made;
    };
  },
});
