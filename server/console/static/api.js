// What pages ask of the server and send to it. A failure is an Error in words.

export async function asked(path) {
  return read(await fetch(path).catch(unreached));
}

export async function sent(path, body) {
  const headers = { "content-type": "application/json", "x-csrf-token": document.querySelector("meta[name=csrf]").content };
  return read(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }).catch(unreached));
}

function unreached() {
  throw new Error("The server cannot be reached; nothing was changed.");
}

async function read(response) {
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error?.message ?? `The server answered ${response.status}.`);
  return body;
}
