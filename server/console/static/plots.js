// The two small plots beside a conversation.

import { byId, element } from "./dom.js";
import { logit } from "./scores.js";

const HEIGHT = 150;
const SCORES = [0.00001, 0.001, 0.05, 0.5, 0.95, 0.999, 0.99999];

// A canvas knows no variables: an element resolves them, also to the light or the dark one.
function colour(name) {
  const probe = document.body.appendChild(element("span", { hidden: true }));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

const axis = (more) => ({
  stroke: colour("--dim"),
  grid: { stroke: colour("--line"), width: 1 },
  ticks: { show: false },
  font: "11px system-ui",
  ...more,
});

class Plot {
  constructor(id) {
    this.place = byId(id);
    this.drawn = null;
    this.again = () => {};
    new ResizeObserver(() => this.drawn?.setSize({ width: this.place.clientWidth, height: HEIGHT })).observe(this.place);
    addEventListener("themechange", () => this.again());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.again());
  }

  draw(options, data) {
    this.again = () => {
      this.drawn?.destroy();
      const size = { width: this.place.clientWidth, height: HEIGHT };
      this.drawn = new uPlot({ ...size, legend: { show: false }, ...options() }, data, this.place);
    };
    this.again();
  }
}

export class AlongPlot extends Plot {
  show(prompt, threshold, others) {
    const places = prompt.scores.map((_, place) => place);
    const flat = (value) => places.map(() => logit(value));
    const values = prompt.scores.map((score) => (score === null ? null : logit(score)));
    this.draw(
      () => ({
        scales: { x: { time: false }, y: { range: [-12.5, 12.5] } },
        axes: [
          axis({ size: 24, values: (_, splits) => splits.map((each) => (Number.isInteger(each) ? each : "")) }),
          axis({ size: 52, splits: () => SCORES.map(logit), values: () => SCORES.map(String) }),
        ],
        series: [
          {},
          { stroke: colour("--accent"), width: 1.5, points: { show: prompt.scores.length < 60, size: 4 } },
          { stroke: colour("--bad"), width: 1.5, dash: [5, 4], points: { show: false } },
          ...others.map(() => ({ stroke: colour("--dim"), width: 1, dash: [2, 4], points: { show: false } })),
        ],
        cursor: { y: false, points: { size: 6 } },
      }),
      [places, values, flat(threshold), ...others.map(flat)],
    );
  }
}

export class CalibrationPlot extends Plot {
  show(curve, thresholds) {
    const least = 1e-4; // a share of none is drawn here
    this.draw(
      () => ({
        scales: { x: { time: false, range: [-12.5, 12.5] }, y: { distr: 3, range: [least / 2, 1.2] } },
        axes: [
          axis({ size: 24, splits: () => SCORES.map(logit), values: () => SCORES.map(String) }),
          axis({ size: 52, splits: () => [1e-4, 1e-3, 1e-2, 0.1, 1], values: () => ["0", "0.1 %", "1 %", "10 %", "100 %"] }),
        ],
        series: [{}, { stroke: colour("--accent"), width: 1.5, points: { show: false } }],
        hooks: { draw: [(plot) => thresholds.forEach((each) => dashed(plot, logit(each)))] },
        cursor: { show: false },
      }),
      [curve.map((each) => logit(each.threshold)), curve.map((each) => Math.max(least, each.flagged))],
    );
  }
}

// A line from the bottom to the top.
function dashed(plot, value) {
  const { ctx, bbox } = plot;
  const at = plot.valToPos(value, "x", true);
  ctx.save();
  ctx.strokeStyle = colour("--bad");
  ctx.setLineDash([6, 5]);
  ctx.lineWidth = 2;
  ctx.beginPath();
  ctx.moveTo(at, bbox.top);
  ctx.lineTo(at, bbox.top + bbox.height);
  ctx.stroke();
  ctx.restore();
}

export class LayersPlot extends Plot {
  show(guard) {
    const layers = guard.layers.map((each) => each.layer);
    this.draw(
      () => ({
        scales: { x: { time: false, range: [layers[0] - 0.6, layers.at(-1) + 0.6] }, y: { range: [0, 1.05] } },
        axes: [
          axis({ size: 24, splits: () => layers, values: () => layers.map(String) }),
          axis({ size: 52, splits: () => [0, 0.5, 1], values: () => ["0", "0.5", "1"] }),
        ],
        series: [
          {},
          {
            stroke: colour("--accent"),
            fill: colour("--soft"),
            paths: uPlot.paths.bars({ size: [0.6, 40] }),
            points: { show: false },
          },
          { stroke: colour("--good"), width: 1.5, points: { show: true, size: 6, fill: colour("--good") } },
          { stroke: "transparent", points: { show: true, size: 14, stroke: colour("--bad"), fill: "transparent", width: 2 } },
        ],
        cursor: { show: false },
      }),
      [
        layers,
        guard.layers.map((each) => each.sas),
        guard.layers.map((each) => each.auroc),
        guard.layers.map((each) => (guard.layers_read.includes(each.layer) ? each.auroc : null)),
      ],
    );
  }
}
