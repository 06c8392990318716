// The classic (canvas) nodes draw a preview's first frame only. The front end shows a node's picture as an element of
// the page, which moves, where `animatedImages` is set: here for the samplers whose preview is an animation, and for
// the subgraphs that hold one. Nodes 2.0 need none of this.
import { app } from "../../../scripts/app.js";

const SAMPLERS = new Set(["WanCoreKSampler"]);

function samples(node) {
  return SAMPLERS.has(node.comfyClass ?? node.type) || (node.subgraph?.nodes ?? []).some(samples);
}

app.registerExtension({
  name: "WanCore.LiveView",
  nodeCreated(node) {
    if (!SAMPLERS.has(node.comfyClass) && !node.subgraph) return;
    let stored = node.animatedImages;
    Object.defineProperty(node, "animatedImages", {
      configurable: true,
      enumerable: true,
      get() {
        return stored || (this.preview?.length > 0 && samples(this));
      },
      set(value) {
        stored = value;
      },
    });
  },
});
