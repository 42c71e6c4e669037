// A conversation with the guarded model.

import { Refused, chat } from "./chat.js";
import { byId, element } from "./dom.js";
import { Pictures, fetched } from "./pictures.js";
import { Saw, VERDICTS } from "./saw.js";
import { paint, precise, shown } from "./scores.js";

const SIDES = ["off", "steer", "block"];
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const MOST_HELD = 60; // blocks that stand for held tokens

class Try {
  constructor(admin) {
    this.admin = admin;
    this.model = admin.model.name;
    this.said = []; // messages so far, as the API takes them
    this.saw = new Saw(admin);
    this.pictures = new Pictures();
    this.running = null;
    this.limit();
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send(byId("text").value.trim());
    });
    byId("text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        byId("composer").requestSubmit();
      }
    });
    byId("stop").addEventListener("click", () => this.running?.abort());
    byId("clear").addEventListener("click", () => this.clear());
    byId("more").addEventListener("click", (event) => {
      byId("options").hidden = !byId("options").hidden;
      event.target.setAttribute("aria-expanded", String(!byId("options").hidden));
    });
    for (const each of document.querySelectorAll(".example")) {
      each.addEventListener("click", async () => {
        if (each.dataset.picture) this.pictures.put(await fetched(each.dataset.picture));
        this.send(each.dataset.question);
      });
    }
  }

  // What this client may not ask for cannot be chosen.
  limit() {
    const mode = byId("mode");
    if (!mode || !this.admin.guard) return;
    const policy = this.admin.policies.find((each) => each.name === this.admin.yours);
    const order = ["off", "monitor", "steer", "block"];
    mode.options[0].textContent = `policy ${policy.name}: ${policy.mode}`;
    byId("threshold").placeholder = shown(policy.threshold);
    if (this.admin.may_loosen) return;
    const least = order.indexOf(policy.mode);
    for (const option of mode.options) {
      const weak = option.value === "compare" ? least > 0 : option.value && order.indexOf(option.value) < least;
      option.disabled = Boolean(weak);
    }
    mode.title = `The policy ${policy.name} may not be loosened.`;
    byId("threshold").max = String(policy.threshold);
  }

  clear() {
    this.said = [];
    byId("turns").replaceChildren();
    byId("empty").hidden = false;
    byId("clear").hidden = true;
    byId("seen").hidden = true;
    byId("unseen").hidden = false;
    byId("text").focus();
  }

  async send(text) {
    const pictures = this.pictures.urls;
    if (this.running || (!text && !pictures.length)) return;
    this.pictures.take();
    byId("text").value = "";
    byId("empty").hidden = true;
    const parts = pictures.map((url) => ({ type: "image_url", image_url: { url } }));
    if (text) parts.push({ type: "text", text });
    const message = { role: "user", content: pictures.length ? parts : text };
    const mode = byId("mode")?.value ?? "";
    const modes = mode === "compare" ? SIDES : [mode];
    const answers = modes.map((each) => new Answer(each, modes.length > 1));
    byId("turns").append(asked(text, pictures), element("li", { className: "answers" }, ...answers.map((each) => each.node)));
    byId("log").scrollTop = byId("log").scrollHeight;
    this.busy(new AbortController());
    const before = [...this.said, message];
    await Promise.all(answers.map((each) => this.run(each, before)));
    this.busy(null);
    const kept = answers.find((each) => each.mode !== "off" && each.whole) ?? answers.find((each) => each.whole);
    if (kept) this.said = [...before, { role: "assistant", content: kept.content }];
    byId("clear").hidden = false;
    byId("text").focus();
  }

  async run(answer, messages) {
    try {
      let verdict = "none";
      for await (const piece of chat(this.body(answer.mode, messages), this.running.signal)) {
        if (piece.verdict) verdict = piece.verdict;
        if (piece.token_scores) {
          answer.judged(verdict, piece.token_scores);
          const pictures = messages.flatMap(picturesOf);
          if (answer.mode === "" || answer.mode === "steer" || !answer.beside) this.saw.show(piece.token_scores, verdict, pictures);
        }
        answer.take(piece.choices?.[0]);
      }
    } catch (error) {
      answer.fail(error);
    }
    this.follow();
  }

  body(mode, messages) {
    const system = byId("system").value.trim();
    const body = { model: this.model, messages: system ? [{ role: "system", content: system }, ...messages] : messages };
    for (const name of NUMBERS) if (byId(name).value !== "") body[name] = Number(byId(name).value);
    if (this.admin.guard) {
      body.guard = { scores: true };
      if (mode) body.guard.mode = mode;
      if (mode === "monitor" && this.admin.guard.reads_answers && this.admin.may_loosen) body.guard.output = { mode };
      if (byId("threshold").value !== "") body.guard.threshold = Number(byId("threshold").value);
      body.moderation = { model: this.model };
    }
    return body;
  }

  busy(controller) {
    this.running = controller;
    byId("send").hidden = controller !== null;
    byId("stop").hidden = controller === null;
  }

  // The end of the conversation stays in sight for who is there already.
  follow() {
    const log = byId("log");
    if (log.scrollHeight - log.scrollTop - log.clientHeight < 240) log.scrollTop = log.scrollHeight;
  }
}

class Answer {
  constructor(mode, beside) {
    this.mode = mode;
    this.beside = beside;
    this.whole = false;
    this.content = "";
    this.told = 0; // characters of it whose tokens have been scored
    this.tail = document.createTextNode("");
    this.chip = element("span", { className: "chip" }, "waiting");
    this.state = element("p", { className: "state", role: "status" }, beside ? element("b", {}, mode) : null, this.chip);
    this.held = element("span", { className: "held", role: "img", hidden: true });
    this.words = element("p", { className: "words waiting", dir: "auto" }, this.tail, this.held);
    this.node = element("article", { className: "answer" }, this.state, this.words);
  }

  judged(verdict, found) {
    const [word, kind] = this.mode === "off" && verdict === "monitored" ? ["Answered, unguarded", "warn"] : VERDICTS[verdict];
    this.chip.textContent = word;
    this.chip.className = `chip ${kind}`;
    this.node.dataset.verdict = verdict;
    this.threshold = found.answer_threshold;
    const last = found.prompt?.scores.at(-1);
    if (last !== undefined) this.chip.title = `threshold ${shown(found.threshold)}`;
  }

  take(choice) {
    if (!choice) return;
    if (this.chip.textContent === "waiting") this.chip.remove();
    this.words.classList.remove("waiting");
    const piece = choice.delta.content ?? choice.delta.refusal ?? "";
    this.content += piece;
    this.tail.appendData(piece);
    for (const each of choice.token_scores ?? []) this.colour(each.token, each.score);
    this.hold(choice.held ?? 0);
    if (choice.finish_reason) {
      this.whole = true;
      if (choice.finish_reason === "content_filter") this.stopped();
      if (choice.finish_reason === "length") this.words.append(element("span", { className: "dim" }, " … cut at the limit of tokens"));
    }
  }

  // Text that nobody has cleared does not leave the server: a grey block stands for each token of it.
  hold(count) {
    const blocks = Math.min(count, MOST_HELD);
    while (this.held.childElementCount > blocks) this.held.lastChild.remove();
    while (this.held.childElementCount < blocks) this.held.append(element("i"));
    this.held.hidden = count === 0;
    this.held.ariaLabel = this.held.title = `${count} tokens are held back until they are cleared`;
  }

  // The prompt had passed, or was only counted: it is the answer that was flagged.
  stopped() {
    if (!["pass", "monitored"].includes(this.node.dataset.verdict)) return;
    this.node.dataset.verdict = "steered";
    this.chip.textContent = "Answer stopped";
    this.chip.className = "chip bad";
  }

  // A token whose text is not what is shown (a part of a character) stays as it is.
  colour(token, score) {
    const at = this.content.indexOf(token, this.told);
    if (!token || at < 0 || at > this.told + 4) return;
    const said = element("span", { className: "said", title: `score ${precise(score)}` }, token);
    said.dataset.score = score ?? "";
    paint(said, score, this.threshold);
    this.tail.before(this.content.slice(this.told, at), said);
    this.tail.deleteData(0, at - this.told + token.length);
    this.told = at + token.length;
  }

  fail(error) {
    this.words.classList.remove("waiting");
    this.hold(0);
    const stopped = error.name === "AbortError";
    const told = stopped ? "Stopped." : error instanceof Refused ? error.message : "The server cannot be reached.";
    if (this.chip.textContent === "waiting") this.chip.remove();
    this.node.append(element("p", { className: stopped ? "dim" : "notice bad", role: stopped ? "status" : "alert" }, told));
    if (error.code === "stale_token" || error.status === 401) {
      const again = element("a", { href: "/console" }, "Open the page again");
      this.node.append(element("p", {}, again));
    }
  }
}

const picturesOf = ({ content }) =>
  Array.isArray(content) ? content.filter((part) => part.type === "image_url").map((part) => part.image_url.url) : [];

const asked = (text, pictures) =>
  element(
    "li",
    { className: "asked" },
    ...pictures.map((url, at) => element("img", { src: url, alt: `Picture ${at + 1} of this message` })),
    text ? element("p", { dir: "auto" }, text) : null,
  );

new Try(JSON.parse(byId("talk").dataset.card));
