// The classic (canvas) nodes draw a preview's first frame only. The front end shows a node's picture as an element of
// the page, which moves, where `animatedImages` is set: here for the samplers whose preview is an animation, and for
// the subgraphs that hold one. Nodes 2.0 need none of this.
import { app } from "../../../scripts/app.js";

const PICTURE = "$$comfy_animation_preview"; // the front end's name of that element
const LEAST_HEIGHT = 180; // pixels on the node, which grows for them
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
    const drawn = node.onDrawBackground;
    node.onDrawBackground = function (...args) {
      drawn?.apply(this, args);
      const picture = this.widgets?.find((widget) => widget.name === PICTURE);
      if (picture && !picture.options.getMinHeight) picture.options.getMinHeight = () => LEAST_HEIGHT;
    };
  },
});
