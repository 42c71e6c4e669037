// The official Node client against a live server: every call, its answers checked here. Prints one line of JSON.
import assert from "node:assert/strict";
import OpenAI, { APIError } from "openai";

const [, , baseURL, picture] = process.argv;
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 60_000 });
const model = (await client.models.list()).data[0].id;
const messages = [
  {
    role: "user",
    content: [
      { type: "image_url", image_url: { url: picture, detail: "auto" } },
      { type: "text", text: "What is in the picture?" },
    ],
  },
];
const greedy = { model, messages, temperature: 0 };
const done = [];

async function check(name, call) {
  await call();
  done.push(name);
}

async function refused(call, status, param) {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof APIError);
    assert.deepEqual([error.status, error.param], [status, param]);
    return true;
  });
}

const whole = await client.chat.completions.create({ ...greedy, n: 2, logprobs: true, top_logprobs: 2 });

await check("chat: choices, log-probabilities, usage", () => {
  assert.equal(whole.choices.length, 2);
  const [choice] = whole.choices;
  assert.equal(choice.finish_reason, "stop");
  const bytes = choice.logprobs.content.flatMap((token) => token.bytes);
  assert.equal(Buffer.from(bytes).toString(), choice.message.content);
  assert.ok(choice.logprobs.content.every((token) => token.top_logprobs.length <= 2));
  assert.ok(whole.usage.prompt_tokens_details.image_tokens > 0);
});

await check("chat: stream", async () => {
  const stream = await client.chat.completions.create({
    ...greedy,
    n: 2,
    stream: true,
    stream_options: { include_usage: true },
  });
  const texts = ["", ""];
  let usage;
  for await (const chunk of stream) {
    for (const choice of chunk.choices) texts[choice.index] += choice.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.deepEqual(texts, whole.choices.map((choice) => choice.message.content));
  assert.deepEqual(usage, whole.usage);
});

await check("chat: json_schema", async () => {
  const schema = {
    type: "object",
    properties: { answer: { enum: ["yes", "no"] } },
    required: ["answer"],
    additionalProperties: false,
  };
  const answer = await client.chat.completions.create({
    ...greedy,
    response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema } },
  });
  assert.ok(["yes", "no"].includes(JSON.parse(answer.choices[0].message.content).answer));
});

await check("chat: moderation", async () => {
  const answer = await client.chat.completions.create({
    ...greedy,
    moderation: { model, policy: { input: { mode: "block" } } },
  });
  assert.equal(answer.moderation.input.results[0].flagged, false);
});

await check("completions", async () => {
  const answer = await client.completions.create({ model, prompt: ["What", "A red"], max_tokens: 4, temperature: 0 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
  const stream = await client.completions.create({ model, prompt: "What", max_tokens: 4, temperature: 0, stream: true });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.text ?? "";
  assert.equal(text, answer.choices[0].text);
});

await check("moderations", async () => {
  const input = [
    { type: "text", text: "What is in the picture?" },
    { type: "image_url", image_url: { url: picture } },
  ];
  const { results } = await client.moderations.create({ model, input });
  assert.equal(results.length, 1);
  assert.deepEqual(results[0].category_applied_input_types.unsafe, ["text", "image"]);
  assert.equal((await client.moderations.create({ model, input: ["one", "two"] })).results.length, 2);
});

await check("models", async () => {
  assert.equal((await client.models.retrieve(model)).id, model);
});

await check("errors", async () => {
  await refused(() => client.chat.completions.create({ ...greedy, web_search_options: {} }), 400, "web_search_options");
  await refused(() => client.chat.completions.create({ ...greedy, model: "gpt" }), 404, "model");
  await refused(() => client.completions.create({ model, prompt: "x", suffix: "y" }), 400, "suffix");
  await refused(() => client.moderations.create({ input: "x", model: "gpt-4o" }), 404, "model");
});

console.log(JSON.stringify(done));
