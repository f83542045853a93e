"use strict";
// The page of the server: asks its own API alone, and shows what models write as text, never as HTML.

const $ = (id) => document.getElementById(id);
const ROWS = {gate: "gate", write_rate: "write rate", surprise: "surprise"};
const MOST_CELLS = 400; // Of a strip; more would be narrower than a pixel.
const state = {models: {}, conversation: newName(), running: null};

function newName() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return "page-" + Array.from(bytes, (one) => one.toString(16).padStart(2, "0")).join("");
}

function make(kind, name, text) {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

async function ask(path, body, signal) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if ($("token").value) headers["Authorization"] = "Bearer " + $("token").value;
  const options = body === undefined ? {headers, signal} :
    {method: "POST", headers, body: JSON.stringify(body), signal};
  const answer = await fetch(path, options);
  if (answer.status === 401) $("token-label").hidden = false;
  if (!answer.ok) {
    let told = answer.status + " " + answer.statusText;
    try { told = (await answer.json()).error.message; } catch (error) { /* An answer of something between. */ }
    throw new Error(told);
  }
  return answer;
}

async function loadModels() {
  try {
    const found = await (await ask("/v1/models")).json();
    state.models = Object.fromEntries(found.data.map((one) => [one.id, one]));
    $("model").replaceChildren(...found.data.map((one) => make("option", "", one.id)));
    $("notice").textContent = "";
  } catch (error) { $("notice").textContent = error.message; }
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function show(role, text) {
  const article = make("article", role);
  article.append(make("div", "text", text));
  $("log").append(article);
  article.scrollIntoView({block: "end"});
  return article;
}

function request(model, text) {
  const seed = $("seed").value;
  const shared = {model: model.id, stream: true, stream_options: {include_usage: true}, return_token_ids: true,
    max_tokens: Number($("tokens").value), temperature: Number($("temperature").value),
    conversation: state.conversation, ...(seed === "" ? {} : {seed: Number(seed)})};
  if (!model.chat) return ["/v1/completions", {...shared, prompt: text}];
  return ["/v1/chat/completions", {...shared, messages: [{role: "user", content: text}]}];
}

async function send(text) {
  const model = state.models[$("model").value];
  if (!model) { $("notice").textContent = "There is no model."; return; }
  $("notice").textContent = "";
  show("user", text);
  const article = show("assistant", "");
  const told = {prompt: [], ids: [], usage: null, began: performance.now(), first: null};
  state.running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  try {
    const [path, body] = request(model, text);
    const answer = await ask(path, body, state.running.signal);
    for await (const event of events(answer)) take(event, told, article);
    figures(model, told);
    if (model.memory) await strip(model, told, article);
  } catch (error) {
    if (error.name !== "AbortError") $("notice").textContent = error.message;
  } finally {
    state.running = null;
    $("send").disabled = false;
    $("stop").disabled = true;
  }
}

function take(event, told, article) {
  if (event.error) throw new Error(event.error.message);
  if (event.usage) told.usage = event.usage;
  if (event.prompt_token_ids) told.prompt = event.prompt_token_ids;
  for (const choice of event.choices || []) {
    const piece = choice.text !== undefined ? choice.text : (choice.delta.content || "");
    article.firstChild.textContent += piece;
    for (const call of (choice.delta && choice.delta.tool_calls) || [])
      article.firstChild.textContent += "\n" + call.function.name + " " + call.function.arguments;
    if (choice.prompt_token_ids) told.prompt = choice.prompt_token_ids;
    if (choice.token_ids && choice.token_ids.length) {
      told.first = told.first || performance.now();
      told.ids.push(...choice.token_ids);
    }
  }
  article.scrollIntoView({block: "end"});
}

function figures(model, told) {
  const parts = [];
  const seconds = (performance.now() - told.first) / 1000;
  if (told.first && told.ids.length > 1 && seconds > 0)
    parts.push(((told.ids.length - 1) / seconds).toFixed(1) + " tokens/s");
  if (told.first) parts.push(Math.round(told.first - told.began) + " ms to the first token");
  if (told.usage) {
    const cached = told.usage.prompt_tokens_details.cached_tokens;
    parts.push(told.usage.prompt_tokens + " tokens read, " + cached + " of them from a kept state");
    parts.push(told.usage.completion_tokens + " written");
  }
  if (model.state_bytes) parts.push("state of " + size(model.state_bytes));
  $("figures").textContent = parts.join(" · ");
}

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return bytes.toFixed(unit ? 1 : 0) + " " + units[unit];
}

async function strip(model, told, article) {
  const tokens = [...told.prompt, ...told.ids];
  const found = await (await ask("/v1/memory", {model: model.id, tokens})).json();
  const start = Math.max(0, tokens.length - MOST_CELLS);
  const box = make("div", "strip");
  const words = make("div", "tokens");
  const spans = [];
  for (let at = start; at < tokens.length; at += 1) spans.push(make("span", "", found.token_strs[at] || "·"));
  words.append(...spans);
  for (const [name, label] of Object.entries(ROWS)) box.append(row(label, found[name].slice(start), spans, found, start));
  box.append(words);
  article.append(box);
  article.scrollIntoView({block: "end"});
}

function row(label, values, spans, found, start) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const line = make("div", "row");
  const cells = make("div", "cells");
  values.forEach((value, at) => {
    const cell = make("span");
    cell.style.background = colour(high > low ? (value - low) / (high - low) : 0);
    cell.title = JSON.stringify(found.token_strs[start + at]) + ": " + value.toPrecision(4);
    cell.addEventListener("mouseenter", () => choose(cell, spans[at], true));
    cell.addEventListener("mouseleave", () => choose(cell, spans[at], false));
    cells.append(cell);
  });
  line.append(make("span", "name", label), cells,
    make("span", "range", low.toPrecision(3) + " to " + high.toPrecision(3)));
  return line;
}

function choose(cell, word, on) {
  cell.classList.toggle("chosen", on);
  word.classList.toggle("chosen", on);
}

function colour(fraction) { // From dark blue over green to yellow; lightness grows with the value.
  return "hsl(" + Math.round(250 - 195 * fraction) + " 65% " + Math.round(22 + 45 * fraction) + "%)";
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value;
  if (!text || state.running) return;
  $("prompt").value = "";
  send(text);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("form").requestSubmit(); }
});
$("stop").addEventListener("click", () => { if (state.running) state.running.abort(); });
$("new").addEventListener("click", () => {
  state.conversation = newName();
  $("log").replaceChildren();
  $("figures").textContent = "";
});
$("token").addEventListener("change", loadModels);
$("access").addEventListener("submit", (event) => { event.preventDefault(); loadModels(); });
loadModels();
