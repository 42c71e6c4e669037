// What the guard saw of a prompt: its tokens, its pictures and two plots.

import { byId, element } from "./dom.js";
import { AlongPlot, LayersPlot } from "./plots.js";
import { heat, paint, precise, shown } from "./scores.js";

const MARKS = { "\n": "↵", "\n\n": "↵↵", "\t": "⇥", "": "∅" };
// Characters that would turn or hide what stands beside them.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]/g;

const visible = (text) =>
  MARKS[text] ?? text.replace(UNSEEN, (each) => `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`);

export class Saw {
  constructor(admin) {
    this.admin = admin;
    this.along = new AlongPlot("along");
    if (admin.guard?.layers.length) new LayersPlot("layers").show(admin.guard);
    if (admin.guard) byId("facts").textContent = this.facts();
    this.marked = null;
    const tokens = byId("tokens");
    tokens.addEventListener("pointerover", (event) => this.mark(event.target.closest("[data-place]")));
    tokens.addEventListener("keydown", (event) => this.step(event));
  }

  show(found, verdict, pictures) {
    byId("unseen").hidden = true;
    byId("seen").hidden = false;
    byId("verdict").replaceChildren(...sentence(found, verdict));
    this.prompt = found.prompt;
    if (found.prompt === null) return;
    this.threshold = found.threshold;
    this.showTokens();
    this.showPictures(pictures);
    const others = (this.admin.guard?.thresholds ?? []).map((each) => each.threshold);
    this.along.show(found.prompt, found.threshold, others);
  }

  facts() {
    const { guard, model } = this.admin;
    const rates = guard.thresholds.map((each) => `${+(100 * each.target_fpr).toFixed(2)} %: ${shown(each.threshold)}`);
    return (
      `Read: ${guard.readers}, at layer ${guard.layers_read.join(", ")} of ${model.layers} (ringed). ` +
      `Thresholds of the bundle by false alarms: ${rates.join(", ") || "none"}.`
    );
  }

  showTokens() {
    const { tokens, scores, ends, images } = this.prompt;
    const children = [];
    for (let place = 0; place < tokens.length; place += 1) {
      const image = images.find((each) => each.begin === place);
      if (image) {
        children.push(this.imageOf(image));
        place = image.end - 1;
        continue;
      }
      const token = element("span", { className: "token", data: { place } }, visible(tokens[place]));
      if (/^<.*>$/.test(tokens[place])) token.classList.add("control");
      if (ends.includes(place)) token.classList.add("end");
      this.dress(token, place, scores[place]);
      children.push(token);
      if (ends.includes(place)) children.push(element("span", { className: "turn-end" }, "end of turn"));
    }
    byId("tokens").replaceChildren(...children);
    this.mark(null);
  }

  imageOf(image) {
    const cells = [];
    for (let place = image.begin; place < image.end; place += 1) {
      const cell = element("i", { className: "cell", data: { place } });
      this.dress(cell, place, this.prompt.scores[place]);
      cells.push(cell);
    }
    return element("span", { className: "image" }, element("b", {}, `picture, ${cells.length} tokens`), ...cells);
  }

  dress(node, place, score) {
    node.dataset.score = score ?? "";
    if (this.prompt.counted.some(([begin, end]) => begin <= place && place < end)) node.classList.add("counted");
    paint(node, score, this.threshold);
  }

  showPictures(pictures) {
    const { images, scores } = this.prompt;
    const known = images.length === pictures.length && images.every((each) => each.side !== null);
    byId("heat").replaceChildren(
      ...(known ? images.map((image, at) => heatMap(pictures[at], image, scores, this.threshold)) : []),
    );
  }

  step(event) {
    const all = [...byId("tokens").querySelectorAll("[data-place]")];
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const at = this.marked === null ? -1 : all.indexOf(this.marked);
    this.mark(all[Math.max(0, Math.min(all.length - 1, at + by))]);
  }

  mark(node) {
    this.marked?.classList.remove("marked");
    this.marked = node;
    if (!node) return;
    node.classList.add("marked");
    const place = Number(node.dataset.place);
    const score = this.prompt.scores[place];
    const what = node.classList.contains("cell") ? "of the picture" : `“${visible(this.prompt.tokens[place])}”`;
    const counts = node.classList.contains("counted") ? " · decides" : "";
    byId("readout").textContent = `Token ${place + 1} ${what}: ${precise(score)}${counts}`;
  }
}

function heatMap(url, image, scores, threshold) {
  const canvas = element("canvas", { width: image.side, height: image.side });
  const context = canvas.getContext("2d");
  for (let at = 0; at < image.side ** 2; at += 1) {
    const strength = heat(scores[image.begin + at], threshold);
    context.fillStyle = `rgb(220 38 38 / ${0.9 * strength})`;
    context.fillRect(at % image.side, Math.floor(at / image.side), 1, 1);
  }
  const picture = element("img", { src: url, alt: "" });
  const label = `The picture; patches whose score is near or over the threshold are red`;
  return element("figure", { role: "img", "aria-label": label }, picture, canvas);
}

function sentence(found, verdict) {
  const score = found.prompt?.scores.length ? decisive(found.prompt) : null;
  const words = VERDICTS[verdict] ?? VERDICTS.none;
  const than = verdict === "pass" ? "below" : "at or over";
  const rest = verdict === "none" ? "" : `score ${shown(score)} is ${than} the threshold ${shown(found.threshold)}`;
  return [element("strong", { className: words[1] }, words[0]), element("span", {}, rest)];
}

// Where one token decided, its score is the prompt's; windows count together, and the highest stands for them.
const decisive = (prompt) => {
  const places = prompt.counted.flatMap(([begin, end]) => [...Array(end - begin).keys()].map((at) => begin + at));
  return Math.max(...places.map((place) => prompt.scores[place] ?? 1));
};

export const VERDICTS = {
  pass: ["Passed", "good"],
  monitored: ["Flagged, not stopped", "warn"],
  steered: ["Refused", "bad"],
  blocked: ["Blocked", "bad"],
  none: ["Not scored", "dim"],
};
