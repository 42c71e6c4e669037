// The guard's card: its plots, and what it does now.

import { asked } from "./api.js";
import { byId, element } from "./dom.js";
import { CalibrationPlot, LayersPlot } from "./plots.js";

const EVERY = 5000; // milliseconds
const REFUSING = ["steered", "blocked"];

const count = (minutes, which) =>
  minutes.reduce((sum, each) => sum + Object.entries(each).reduce((all, [name, n]) => all + (which(name) ? n : 0), 0), 0);

const figures = (minutes) => ({
  all: count(minutes, () => true),
  flagged: count(minutes, (name) => name !== "pass"),
  refused: count(minutes, (name) => REFUSING.includes(name)),
});

const percent = (part, all) => (all ? `${((100 * part) / all).toFixed(1)} %` : "no requests");

function policyNow(policy) {
  const lately = figures(policy.minutes.slice(-5));
  const hour = figures(policy.minutes);
  return element(
    "article",
    {},
    element("h3", {}, policy.name),
    element("p", { className: "big" }, percent(lately.refused, lately.all), element("small", {}, "refused in 5 minutes")),
    element("p", { className: "dim" }, `Last hour: ${hour.all} requests, ${hour.flagged} flagged, ${hour.refused} refused.`),
    bars(policy.minutes),
    drift(policy.drift),
  );
}

function bars(minutes) {
  const all = minutes.map((each) => figures([each]));
  const most = Math.max(1, ...all.map((each) => each.all));
  const label = "Requests in each minute of the last hour, the flagged ones in red";
  const made = element("div", { className: "bars", role: "img", "aria-label": label });
  for (const each of all) {
    const bar = element("i", {}, element("b"));
    bar.style.height = `${(100 * each.all) / most}%`;
    bar.firstChild.style.height = each.all ? `${(100 * each.flagged) / each.all}%` : "0";
    made.append(bar);
  }
  return made;
}

function drift(found) {
  if (!found) return element("p", { className: "dim" }, "Drift is not watched here.");
  if (found.psi === null) return element("p", { className: "dim" }, `Drift: ${found.scores} scores so far, too few to tell.`);
  const words = `PSI ${found.psi.toFixed(3)}, KS ${found.ks.toFixed(3)}, p ${found.p_value.toPrecision(2)} over ${found.scores} scores`;
  const chip = element("span", { className: `chip ${found.alarm ? "bad" : "good"}` }, found.alarm ? "drifted" : "no drift");
  return element("p", { className: "dim" }, chip, ` ${words}`);
}

async function look() {
  if (document.visibilityState !== "visible") return;
  const stale = byId("stale");
  try {
    const found = await asked("/admin/now");
    const load = element("p", { className: "dim" }, `Running: ${found.running}. Waiting: ${found.waiting}.`);
    byId("now").replaceChildren(...found.policies.map(policyNow), load);
    stale.hidden = true;
  } catch {
    stale.hidden = false;
    stale.textContent = "the server cannot be reached; these are old figures";
  }
}

look();
setInterval(look, EVERY);
document.addEventListener("visibilitychange", look);

if (byId("layers")) {
  const card = JSON.parse(byId("layers").dataset.card);
  if (card.guard.layers.length) new LayersPlot("layers").show(card.guard);
  if (byId("calibration")) {
    const thresholds = [...new Set(card.policies.map((each) => each.threshold))];
    new CalibrationPlot("calibration").show(card.guard.calibration, thresholds);
  }
}
