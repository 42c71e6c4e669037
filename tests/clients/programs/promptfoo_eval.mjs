// promptfoo: one prompt to chat completions and to responses.
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import * as t from "./tasks.mjs";

function evaluated(provider) {
  const config = {
    prompts: ["{{question}}"],
    providers: [{ id: `openai:${provider}:${t.model}`, config: { apiBaseUrl: `${t.url}/v1`, apiKey: "none" } }],
    tests: [{ vars: { question: t.hello }, assert: [{ type: "javascript", value: "output.length > 0" }] }],
  };
  writeFileSync("config.json", JSON.stringify(config));
  const environment = { ...process.env, PROMPTFOO_DISABLE_TELEMETRY: "1", PROMPTFOO_DISABLE_UPDATE: "1" };
  const command = ["eval", "-c", "config.json", "--no-cache", "--no-progress-bar", "-o", "found.json"];
  const done = spawnSync("node_modules/.bin/promptfoo", command, { env: environment, encoding: "utf8" });
  t.expect(done.status === 0, (done.stdout + done.stderr).slice(-400));
  const { stats } = JSON.parse(readFileSync("found.json", "utf8")).results;
  t.expect(stats.successes === 1, stats);
}

await t.run({
  async chat() {
    evaluated("chat");
  },
  async responses() {
    evaluated("responses");
  },
});
