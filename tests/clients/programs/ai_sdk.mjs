// The AI SDK with the provider that its argument names: `openai-compatible` (chat completions) or `openai` (responses).
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import * as t from "./tasks.mjs";

async function named(provider) {
  const options = { name: "autosteer", baseURL: `${t.url}/v1`, apiKey: "none" };
  if (provider === "openai") return (await import("@ai-sdk/openai")).createOpenAI(options)(t.model);
  const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
  return createOpenAICompatible({ ...options, supportsStructuredOutputs: true })(t.model);
}
const model = await named(process.argv[2]);
const thing = z.object({ colour: z.enum(["red", "green", "blue"]), sure: z.boolean() });

async function streamed(prompt) {
  let text = "";
  for await (const piece of streamText({ model, prompt }).textStream) text += piece;
  return text;
}

await t.run({
  async plain() {
    const { text } = await generateText({ model, prompt: t.hello });
    t.expect(text === t.greeting, text);
  },
  async stream() {
    const text = await streamed(t.hello);
    t.expect(text === t.greeting, text);
  },
  async image() {
    const content = [{ type: "text", text: t.askPicture }, { type: "image", image: t.picture }];
    const { text } = await generateText({ model, messages: [{ role: "user", content }] });
    t.expect(text === t.seen, text);
  },
  async structured() {
    const { object } = await generateObject({ model, schema: thing, prompt: t.hello });
    t.expect(thing.safeParse(object).success, object);
  },
  async tools() {
    let calls = 0;
    const execute = async () => `sunny ${++calls}`;
    const weather = tool({ description: "Tell the weather", inputSchema: z.object({ city: z.string() }), execute });
    const { text } = await generateText({ model, prompt: t.askWeather, tools: { weather }, stopWhen: stepCountIs(5) });
    t.expect(calls === 3 && text === t.done, { calls, text });
  },
  async refusal() {
    const { text } = await generateText({ model, prompt: t.askHarm });
    t.expect(text === t.refusal, text);
    const again = await streamed(t.askHarm);
    t.expect(again === t.refusal, again);
    try {
      await generateObject({ model, schema: thing, prompt: t.askHarm });
    } catch (error) {
      return `text; generateObject ${error.name}, ${JSON.stringify(error).includes(t.refusal) ? "with" : "without"} its text`;
    }
    throw new Error("an object was made");
  },
});
