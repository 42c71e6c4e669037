// The queue of reviews: one record after another, by keyboard.

import { asked, sent } from "./api.js";
import { byId, element } from "./dom.js";
import { precise } from "./scores.js";

// What 1 and 2 say of a record, by whether it was flagged.
const LABELS = { true: ["rightly flagged", "wrongly flagged"], false: ["rightly passed", "missed"] };
const HIDDEN = ["record_id", "request_id", "content_hash", "time", "score", "threshold", "decision", "route", "category_scores"];

class Review {
  constructor() {
    this.item = null;
    this.busy = false;
    for (const [name, value] of new URLSearchParams(location.search)) {
      const field = byId("filters").elements[name];
      if (field) field.value = value;
    }
    byId("filters").addEventListener("change", () => this.begin());
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    const acts = {
      right: () => this.label(0),
      wrong: () => this.label(1),
      skip: () => this.go(false),
      back: () => this.go(true),
      undo: () => this.undo(),
    };
    for (const [id, act] of Object.entries(acts)) byId(id).addEventListener("click", act);
    const keys = { 1: acts.right, 2: acts.wrong, j: acts.skip, k: acts.back, u: acts.undo, n: () => byId("note").focus() };
    addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = event.target.matches("input:not([type=checkbox]), select, textarea");
      if (typing) {
        if (event.target.id === "note" && (event.key === "Enter" || event.key === "Escape")) byId("item").focus();
        return;
      }
      const act = keys[event.key.toLowerCase()];
      if (!act) return;
      event.preventDefault();
      act();
    });
    this.begin();
  }

  query(more = {}) {
    const found = new URLSearchParams();
    for (const [name, value] of new FormData(byId("filters"))) if (value !== "") found.set(name, value);
    if (found.get("which") !== "changed") found.delete("shadow");
    if (found.has("since")) found.set("since", new Date(Date.now() - found.get("since") * 3600e3).toISOString().replace("Z", "+00:00"));
    for (const [name, value] of Object.entries(more)) found.set(name, String(value));
    return found;
  }

  async begin() {
    await this.count();
    await this.only(async () => this.show((await asked(`/admin/review/next?${this.query()}`)).item));
  }

  async count() {
    try {
      const { left, both, same } = await asked(`/admin/review/summary?${this.query()}`);
      const agreed = both ? ` Of ${both} records with two reviewers, ${same} have one label (${Math.round((100 * same) / both)} %).` : "";
      this.left = left;
      this.agreed = agreed;
      this.tell();
    } catch (error) {
      this.fail(error);
    }
  }

  tell() {
    byId("counts").textContent = `${this.left} left.${this.agreed}`;
  }

  // One thing after another: a key that is pressed twice labels one record.
  async only(act) {
    if (this.busy) return;
    this.busy = true;
    try {
      await act();
      byId("failure").hidden = true;
    } catch (error) {
      this.fail(error);
    }
    this.busy = false;
  }

  fail(error) {
    byId("failure").hidden = false;
    byId("failure").textContent = error.message;
  }

  label(which) {
    if (!this.item) return;
    this.only(async () => {
      const { id, flagged, mine } = this.item;
      await sent("/console/review/label", { id, label: LABELS[flagged][which], note: byId("note").value });
      if (!mine) this.left -= 1;
      this.show((await asked(`/admin/review/next?${this.query({ after: id })}`)).item);
      this.tell();  // the last, so that who sees it may go on
    });
  }

  go(back) {
    this.only(async () => {
      const place = this.item ? { after: this.item.id, back } : { labelled: true };
      const { item } = await asked(`/admin/review/next?${this.query(place)}`);
      if (item || !back) this.show(item);
    });
  }

  undo() {
    this.only(async () => {
      const { item } = await sent("/console/review/undo", {});
      if (!item) return;
      this.left += 1;
      this.tell();
      this.show(item);
    });
  }

  show(item) {
    this.item = item;
    for (const id of ["item", "judge"]) byId(id).hidden = item === null && id === "item";
    byId("judge").hidden = false;
    byId("none").hidden = item !== null;
    byId("note").value = item?.mine?.note ?? "";
    const names = LABELS[item?.flagged ?? true];
    byId("right").lastElementChild.textContent = names[0];
    byId("wrong").lastElementChild.textContent = names[1];
    for (const id of ["right", "wrong"]) byId(id).disabled = item === null;
    if (!item) return;
    const { facts } = item;
    byId("verdict").textContent = `${facts.decision} ${facts.score === undefined ? "" : precise(facts.score)} / ${precise(facts.threshold ?? 1)}`;
    byId("verdict").className = `chip ${item.flagged ? "bad" : "good"}`;
    byId("when").textContent = `${new Date(facts.time).toLocaleString()} · ${facts.route}`;
    byId("said").replaceChildren(...turns(item));
    const told = Object.entries(facts).filter(([name]) => !HIDDEN.includes(name));
    byId("facts").replaceChildren(...told.map(([name, value]) => fact(name, value)));
    const all = [item.mine, ...item.others].filter((each) => each !== null);
    byId("labels").replaceChildren(...all.map((each) => element("p", { className: "dim" }, `${each.reviewer}: ${each.label}${each.note ? ` — ${each.note}` : ""}`)));
    byId("item").focus({ preventScroll: true });
  }
}

const turns = (item) => {
  if (item.messages === null) return [element("p", { className: "dim" }, "No text is kept of this request.")];
  const asked = item.messages.map((each) => turn(each.role, each.text, each.pictures));
  return [...asked, ...(item.answers ?? []).map((each) => turn("answer", each, 0))];
};

const turn = (role, text, pictures) =>
  element(
    "section",
    {},
    element("h3", {}, pictures ? `${role}, with ${pictures} picture${pictures > 1 ? "s" : ""} (not kept)` : role),
    element("p", { dir: "auto" }, text),
  );

const shownValue = (value) => (typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : String(value));

const fact = (name, value) => element("div", {}, element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, shownValue(value)));

new Review();
