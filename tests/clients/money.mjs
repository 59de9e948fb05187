// Many calls by clients of Node.js that end in different ways; the last line of output is a JSON report, as money.py's.
//
//     node money.mjs TEXT PATIENCE_MS TOGETHER WAY:COUNT [WAY:COUNT ..]

const CHAT = "https://api.openai.com/v1/chat/completions";
const HEADERS = { "content-type": "application/json", authorization: "Bearer test-key" };

const [text, patience, together, ...ways] = process.argv.slice(2);
const request = { model: "gpt-4o-mini", max_tokens: 64, messages: [{ role: "user", content: text }] };
const usage = { stream: true, stream_options: { include_usage: true } };
const { default: OpenAI } = await import("openai");
const sdk = new OpenAI({ maxRetries: 0, timeout: 60_000 });
const soon = () => ({ signal: AbortSignal.timeout(Number(patience)) });

// As programs do that know the API: they stop at its own last line.
async function read(answer, enough) {
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  let all = "";
  const decoder = new TextDecoder();
  for await (const part of answer.body) {
    all += decoder.decode(part, { stream: true });
    if (enough(all)) return all;
  }
  throw new Error("no end of the stream");
}

const post = (body, headers = {}) =>
  fetch(CHAT, { method: "POST", headers: { ...HEADERS, ...headers }, body: JSON.stringify(body), ...soon() });

const clients = {
  async "fetch.plain"() {
    return (await (await post(request)).json()).choices[0].message.content;
  },
  async "fetch.stream"() {
    return read(await post({ ...request, ...usage }), (all) => all.includes("data: [DONE]"));
  },
  async "fetch.leave"() {
    const answer = await post({ ...request, stream: true }, { "x-pause-after": "20" });
    return read(answer, (all) => all.split('"content"').length > 21);
  },
  async "openai.plain"() {
    return (await sdk.chat.completions.create(request, soon())).choices[0].message.content;
  },
  async "openai.stream"() {
    let all = "";
    const chunks = await sdk.chat.completions.create({ ...request, ...usage }, soon());
    for await (const chunk of chunks) all += chunk.choices[0]?.delta.content ?? "";
    return all;
  },
  async "openai.leave"() {
    const headers = { "x-pause-after": "20" };
    const chunks = await sdk.chat.completions.create({ ...request, stream: true }, { ...soon(), headers });
    let seen = 0;
    for await (const chunk of chunks) {
      if (chunk.choices[0]?.delta.content && ++seen === 20) break;
    }
    return seen;
  },
};

const calls = ways.flatMap((way) => {
  const [name, count] = way.split(":");
  return Array(Number(count)).fill(name);
});
const outcomes = {};
async function work() {
  for (let name; (name = calls.pop()); ) {
    let outcome = "ok";
    try {
      await clients[name]();
    } catch (error) {
      outcome = error.name;
    }
    const key = `${name} ${outcome}`;
    outcomes[key] = (outcomes[key] ?? 0) + 1;
  }
}
await Promise.all(Array.from({ length: Number(together) }, work));
console.log(JSON.stringify(outcomes));
process.exit(0);
