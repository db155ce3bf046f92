// Reads JSON documents (base64, one a line) as JavaScript does and writes each in RFC 8785 form (base64), or "refused".
import { createInterface } from "node:readline";

function canonical(value) {
  if (Array.isArray(value)) return "[" + value.map(canonical).join(",") + "]";
  if (value !== null && typeof value === "object") {
    const keys = Object.keys(value).sort();
    return "{" + keys.map((key) => JSON.stringify(key) + ":" + canonical(value[key])).join(",") + "}";
  }
  return JSON.stringify(value);
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer = "refused";
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Buffer.from(line, "base64"));
    answer = Buffer.from(canonical(JSON.parse(text)), "utf-8").toString("base64");
  } catch {}
  console.log(answer);
}
