// The openai client for Node on chat completions and responses.
import OpenAI from "openai";
import * as t from "./tasks.mjs";

const client = new OpenAI({ baseURL: `${t.url}/v1`, apiKey: "none" });
const tools = [{ type: "function", function: { name: "weather", description: "Tell the weather", parameters: t.city } }];
const thing = {
  type: "object",
  properties: { colour: { enum: ["red", "green", "blue"] } },
  required: ["colour"],
  additionalProperties: false,
};

async function said(messages, options = {}) {
  const answer = await client.chat.completions.create({ model: t.model, messages, ...options });
  return answer.choices[0].message;
}
const user = (content) => ({ role: "user", content });

await t.run({
  async plain() {
    t.expect((await said([user(t.hello)])).content === t.greeting);
    const response = await client.responses.create({ model: t.model, input: t.hello });
    t.expect(response.output_text === t.greeting, response);
  },
  async stream() {
    const chunks = await client.chat.completions.create({ model: t.model, messages: [user(t.hello)], stream: true });
    let text = "";
    for await (const chunk of chunks) text += chunk.choices[0]?.delta.content ?? "";
    t.expect(text === t.greeting, text);
    const events = await client.responses.create({ model: t.model, input: t.hello, stream: true });
    text = "";
    for await (const event of events) if (event.type === "response.output_text.delta") text += event.delta;
    t.expect(text === t.greeting, text);
  },
  async image() {
    const parts = [{ type: "text", text: t.askPicture }, { type: "image_url", image_url: { url: t.picture } }];
    t.expect((await said([user(parts)])).content === t.seen);
  },
  async structured() {
    const response_format = { type: "json_schema", json_schema: { name: "thing", strict: true, schema: thing } };
    const { content } = await said([user(t.hello)], { response_format });
    t.expect(JSON.parse(content).colour, content);
  },
  async tools() {
    const messages = [user(t.askWeather)];
    for (let turn = 0; turn < 3; turn++) {
      const message = await said(messages, { tools });
      t.expect(message.tool_calls?.length, message);
      messages.push(message);
      for (const call of message.tool_calls) messages.push({ role: "tool", tool_call_id: call.id, content: "sunny" });
    }
    t.expect((await said(messages, { tools })).content === t.done);
  },
  async refusal() {
    t.expect((await said([user(t.askHarm)])).content === t.refusal);
    return "text";
  },
});
