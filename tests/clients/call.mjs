// One call to an AI provider by a client of Node.js; the last line of output is a JSON report, as call.py's.
//
//     node call.mjs CLIENT MODEL [MODEL of a second call, made when a line comes on standard input]

import { once } from "node:events";
import https from "node:https";

const CHAT = "https://api.openai.com/v1/chat/completions";
const HEADERS = { "content-type": "application/json", authorization: "Bearer test-key" };
const MESSAGES = [{ role: "user", content: "What is the capital of France?" }];
const agent = new https.Agent({ keepAlive: true });

const clients = {
  async fetch(model) {
    const body = JSON.stringify({ model, max_tokens: 64, messages: MESSAGES });
    const answer = await fetch(CHAT, { method: "POST", headers: HEADERS, body });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    return (await answer.json()).choices[0].message.content;
  },
  https(model) {
    return new Promise((resolve, reject) => {
      const request = https.request(CHAT, { method: "POST", headers: HEADERS, agent }, (answer) => {
        let text = "";
        answer.setEncoding("utf8");
        answer.on("data", (part) => (text += part));
        answer.on("end", () => resolve(JSON.parse(text).choices[0].message.content));
        answer.on("error", reject);
      });
      request.on("error", reject);
      request.end(JSON.stringify({ model, max_tokens: 64, messages: MESSAGES }));
    });
  },
  async openai(model) {
    const { default: OpenAI } = await import("openai");
    clients.sdk ??= new OpenAI({ maxRetries: 0, timeout: 60_000 });
    const answer = await clients.sdk.chat.completions.create({ model, max_tokens: 64, messages: MESSAGES });
    return answer.choices[0].message.content;
  },
};

const [name, ...models] = process.argv.slice(2);
if (name === "openai") await import("openai");
for (const [index, model] of models.entries()) {
  if (index) await once(process.stdin, "data");
  const report = { ok: true, error: null, answer: null };
  const begun = performance.now();
  try {
    report.answer = await clients[name](model);
  } catch (error) {
    Object.assign(report, { ok: false, error: `${error.name}: ${error.message} ${error.cause ?? ""}` });
  }
  report.seconds = (performance.now() - begun) / 1000;
  console.log(JSON.stringify(report));
}
agent.destroy();
process.stdin.destroy();
