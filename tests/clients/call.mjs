// One chat completion by Node's own fetch; prints a JSON report.
const [model = "gpt-4o-mini"] = process.argv.slice(2);
const begun = performance.now();
const report = { ok: true, error: null, answer: null };
try {
  const answer = await fetch("https://api.openai.com/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: "Bearer test-key" },
    body: JSON.stringify({ model, messages: [{ role: "user", content: "What is the capital of France?" }] }),
  });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  report.answer = (await answer.json()).choices[0].message.content;
} catch (error) {
  report.ok = false;
  report.error = `${error.name}: ${error.cause?.message ?? error.message}`;
}
report.seconds = (performance.now() - begun) / 1000;
console.log(JSON.stringify(report));
