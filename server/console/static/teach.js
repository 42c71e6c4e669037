// From labels to the next guard: how many there are, what it makes of those held out, and what it would change.

import { asked } from "./api.js";
import { byId, element } from "./dom.js";
import { precise } from "./scores.js";

const WEEK = 168; // hours, as Review's filter has them
const MOST_FLIPS = 50;

const dim = (...words) => element("p", { className: "dim" }, ...words);
const share = (part, all) => (all ? `${((100 * part) / all).toFixed(part % all ? 1 : 0)} %` : "–");
const several = (count, one, many) => `${count} ${count === 1 ? one : many}`;

const tile = (number, words, kind = "") =>
  element("div", { className: "tile" }, element("dt", {}, words), element("dd", { className: `big ${number ? kind : ""}` }, String(number)));

const tiles = (...all) => element("dl", { className: "tiles" }, ...all);

function labels(found) {
  const counts = Object.entries(found.labels);
  if (!counts.length) return [dim("There are none yet. ", element("a", { href: "/console/review" }, "Review what was flagged"), " to give some.")];
  const left = Object.entries(found.left_out).map(([why, count]) => `${count}: ${why}`);
  return [
    tiles(...counts.map(([name, count]) => tile(count, name))),
    dim(`${several(found.fit, "row", "rows")} to fit on, ${found.held_out} held out.`, left.length ? ` Left out: ${left.join("; ")}.` : ""),
  ];
}

function compared(found) {
  const row = (name, side) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, name, element("small", {}, `${side.guard}, from ${precise(side.threshold)} on`)),
      element("td", {}, share(side.caught, side.harmful), element("small", {}, `${side.caught} of ${side.harmful} harmful`)),
      element("td", {}, share(side.false_alarms, side.harmless), element("small", {}, `${side.false_alarms} of ${side.harmless} harmless`)),
    );
  const head = ["Bundle", "Caught", "False alarms"].map((name) => element("th", { scope: "col" }, name));
  const known = found.fitted ? [dim(`${several(found.fitted, "label", "labels")} held out ask what a fit's rows ask, and do not count.`)] : [];
  const table = element(
    "table",
    {},
    element("caption", { className: "dim" }, "On labels that were held out of the fit"),
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, row("Before", found.old), row("After", found.new)),
  );
  return [table, ...known, ...flips(found)];
}

function flips(found) {
  if (!found.flips.length) return [dim("The two judge all of them alike.")];
  const shown = found.flips.slice(0, MOST_FLIPS).map((each) => {
    const right = each.flagged === each.harmful;
    return element(
      "li",
      {},
      element("span", { className: `chip ${right ? "good" : "bad"}` }, right ? "mended" : "spoilt"),
      element("span", { className: "flip", dir: "auto" }, each.text ?? "No text is kept of this request."),
      element("small", {}, `${each.harmful ? "harmful" : "harmless"}, ${precise(each.old)} → ${precise(each.new)}`),
    );
  });
  const more = found.flips.length > MOST_FLIPS ? [dim(`and ${found.flips.length - MOST_FLIPS} more`)] : [];
  return [element("h3", {}, `${several(found.flips.length, "verdict", "verdicts")} that it changes`), element("ul", { className: "flips" }, ...shown), ...more];
}

function tried(shadow) {
  const about = element("p", {}, element("b", {}, shadow.name), ` judges beside the acting guard, from a score of ${precise(shadow.threshold ?? 1)} on.`);
  if (shadow.problem) return [element("p", { className: "notice bad", role: "alert" }, shadow.problem)];
  if (shadow.guard === null) return [about, dim("It is the acting bundle with another threshold.")];
  if (!shadow.compared) return [about, dim("Its folder does not say how it judges labels that were held out: it was made without --add, or there were none.")];
  return [about, ...compared(shadow.compared)];
}

function week(found) {
  const name = found.shadow?.name;
  if (!name) return null;
  const of = (flagged, byShadow) => found.changes.find((each) => each.flagged === flagged && each.by_shadow === byShadow) ?? { count: 0, labels: {} };
  const judged = found.changes.reduce((sum, each) => sum + each.count, 0);
  if (!judged) return [dim(`${name} has judged no request of the audit log yet.`)];
  const passes = of(true, false);
  const flags = of(false, true);
  const said = ({ labels: all }) => Object.entries(all).map(([label, count]) => `${count} ${label}`).join(", ");
  const told = [["would pass", passes], ["would be flagged", flags]].filter(([, each]) => said(each)).map(([what, each]) => `Of those that ${what}, reviewers say: ${said(each)}.`);
  const query = new URLSearchParams({ which: "changed", since: WEEK });
  return [
    tiles(
      tile(judged, "requests judged by both"),
      tile(passes.count, "flagged, and would pass", "good"),
      tile(flags.count, "passed, and would be flagged", "bad"),
      tile(of(true, true).count, "flagged by both"),
    ),
    dim(told.length ? told.join(" ") : "Reviewers have labelled none of those that would change."),
    passes.count + flags.count ? element("p", {}, element("a", { className: "button quiet", href: `/console/review?${query}` }, "Review what would change")) : null,
  ].filter((each) => each !== null);
}

try {
  const found = await asked("/admin/teach");
  byId("labels").replaceChildren(...labels(found.labels));
  byId("files").hidden = !Object.keys(found.labels.labels).length;
  if (found.shadow) byId("tried").replaceChildren(...tried(found.shadow));
  byId("week").replaceChildren(...(week(found) ?? byId("week").children));
  if (found.acting) byId("acting").replaceChildren(element("h3", {}, "The acting bundle was made with labels"), ...compared(found.acting));
} catch (error) {
  byId("failure").hidden = false;
  byId("failure").textContent = error.message;
  for (const waiting of document.querySelectorAll("#labels, #tried, #week")) waiting.replaceChildren();
}
