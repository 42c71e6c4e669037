// One chat request: its stream as pieces. A failure is thrown as the API tells it.

export class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `The server answered ${status}.`);
    this.status = status;
    this.code = error?.code ?? null;
  }
}

export async function* chat(body, signal) {
  const response = await fetch("/console/chat", {
    method: "POST",
    headers: {
      "content-type": "application/json",
      "x-csrf-token": document.querySelector("meta[name=csrf]").content,
    },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!response.ok) throw new Refused(response.status, (await response.json().catch(() => ({}))).error);
  yield { verdict: response.headers.get("x-autosteer-verdict") };
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(500, chunk.error);
    yield chunk;
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (kept + value).split("\n\n");
    kept = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}
