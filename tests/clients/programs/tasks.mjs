// What the programs for Node share: what tasks.py tells, and how a task is told.
export const { CLIENT_URL: url, CLIENT_MODEL: model, CLIENT_PICTURE: picture } = process.env;
export const { hello, greeting, askPicture, seen, askWeather, done, askHarm, refusal } = JSON.parse(process.env.CLIENT_TEXTS);
export const city = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};

export function expect(condition, found) {
  if (!condition) throw new Error(`found ${JSON.stringify(found)}`);
}

export async function run(tasks) {
  for (const [task, call] of Object.entries(tasks)) {
    let ok = true;
    let note = "";
    try {
      note = (await call()) ?? "";
    } catch (error) {
      ok = false;
      note = `${error.name}: ${error.message}`;
    }
    console.log(JSON.stringify({ task, ok, note }));
  }
}
