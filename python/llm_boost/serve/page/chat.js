// The chat: conversations kept in localStorage, answers streamed from /v1/chat/completions.
"use strict";

const $ = (id) => document.getElementById(id);

// ---- What the browser keeps. A conversation has a key of its own, so that two tabs do not overwrite each other's.

const CHAT = "llm_boost.chat.", SETTINGS = "llm_boost.settings", THEME = "llm_boost.theme", API_KEY = "llm_boost.key";

function read(store, key) {
  try {
    return JSON.parse(store.getItem(key));
  } catch { return null; } // no access to storage, or not ours
}

function allChats() {
  let keys = [];
  try {
    keys = Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
  } catch { /* no access to storage */ }
  const chats = keys.map((key) => read(localStorage, key)).filter((chat) => Array.isArray(chat?.messages));
  return chats.sort((a, b) => b.changed - a.changed);
}

function saveChat(chat) {
  if (!chat.messages.length) return;
  chat.changed = Date.now();
  for (const oldest of [null, ...allChats().reverse()]) { // where space runs out, the oldest conversations go
    try {
      if (oldest && oldest.id !== chat.id) localStorage.removeItem(CHAT + oldest.id);
      localStorage.setItem(CHAT + chat.id, JSON.stringify(chat));
      return;
    } catch { /* full, or no access */ }
  }
  announce("The browser has no room to keep this conversation.");
}

const newChat = () => ({id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, changed: 0, messages: []});
const titleOf = (chat) => chat.messages[0]?.content.trim().split("\n")[0].slice(0, 80) || "New chat";

// ---- Settings: a field left empty is not sent, so the server's default holds.

const FIELDS = [
  {name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.01},
  {name: "top_p", label: "Top p", min: 0, max: 1, step: 0.01},
  {name: "top_k", label: "Top k", min: 0, step: 1},
  {name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01},
  {name: "repetition_penalty", label: "Repetition penalty", min: 0.01, max: 2, step: 0.01},
  {name: "max_tokens", label: "Most new tokens", min: 1, step: 1},
  {name: "seed", label: "Seed", min: 0, step: 1},
];

for (const {name, label, ...limits} of FIELDS) {
  const field = element("input", {id: name, type: "number", placeholder: "default", inputMode: "decimal", ...limits});
  $("fields").append(element("label", {}, label, field));
}

function showSettings() {
  const settings = read(localStorage, SETTINGS) ?? {};
  for (const {name} of FIELDS) $(name).value = settings[name] ?? "";
  $("system").value = settings.system ?? "";
  $("key").value = read(sessionStorage, API_KEY) ?? "";
}

/** The sampling fields that are filled. */
function sampling() {
  const filled = FIELDS.filter(({name}) => $(name).value !== "" && $(name).validity.valid);
  return Object.fromEntries(filled.map(({name}) => [name, $(name).valueAsNumber]));
}

function saveSettings() {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify({...sampling(), system: $("system").value}));
    sessionStorage.setItem(API_KEY, JSON.stringify($("key").value.trim()));
    showSettings(); // what is seen is what is sent
  } catch { announce("The browser does not keep settings: they last until the page is left."); }
}

// ---- The server.

/** An error to show as it is; `status` is 0 where the server did not answer. */
class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

async function request(path, options = {}) {
  const key = $("key").value.trim(), headers = {"Content-Type": "application/json"};
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, {...options, headers});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it running?");
  }
  if (response.ok) return response;
  const wait = response.headers.get("Retry-After"), body = await response.json().catch(() => null);
  const reason = body?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  throw new ServerError(wait ? `${reason} Try again in ${wait} s.` : reason, response.status);
}

async function loadModels() {
  const models = (await (await request("v1/models")).json()).data.map(({id}) => id);
  const chosen = $("model").value;
  $("model").replaceChildren(...models.map((id) => element("option", {value: id}, id)));
  if (models.includes(chosen)) $("model").value = chosen;
  $("model").disabled = models.length < 2;
  document.title = $("model").value || "llm_boost";
}

/** Yields the JSON of each server-sent event up to [DONE]. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let line = "", data = [];
  for (;;) {
    const {value, done} = await reader.read();
    if (done) throw new ServerError("The connection broke off: the answer is not complete.");
    const lines = (line + value).split("\n");
    line = lines.pop();
    for (const text of lines.map((one) => one.replace(/\r$/, ""))) {
      if (text.startsWith("data:")) data.push(text.slice(5).replace(/^ /, ""));
      if (text !== "" || !data.length) continue;
      if (data.join("\n") === "[DONE]") return;
      yield JSON.parse(data.join("\n"));
      data = [];
    }
  }
}

/** What the server is sent: without answers that failed, and with user messages in a row joined. */
function history(chat) {
  const system = $("system").value.trim();
  const messages = system ? [{role: "system", content: system}] : [];
  for (const {role, content} of chat.messages) {
    if (!content) continue;
    if (role === "user" && messages.at(-1)?.role === "user") messages.at(-1).content += `\n\n${content}`;
    else messages.push({role, content});
  }
  return messages;
}

// ---- The conversation on the screen.

let chat = newChat();
let running = null; // the AbortController of the answer that streams now

function announce(text) { $("status").textContent = text; }

/** Changes the log; where its end was in view, it stays so. */
function keepingEnd(change) {
  const log = $("log"), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function show(message) {
  const text = element("div", {className: "text"});
  if (message.role === "user") {
    const node = element("div", {className: "message user"}, element("span", {className: "unseen"}, "You: "), message.content);
    $("messages").append(node);
    return {update() {}};
  }
  const wait = element("span", {className: "wait"}), error = element("div", {className: "error"});
  const note = element("span", {className: "note"});
  const retry = element("button", {className: "quiet retry", type: "button", onclick: tryAgain}, "Try again");
  const foot = element("div", {className: "foot"}, note, copyButton(() => message.content), retry);
  const node = element("div", {className: "message assistant"}, element("span", {className: "unseen"}, "Answer: "), text, wait, error, foot);
  $("messages").append(node);
  return {
    update(live) {
      showMarkdown(message.content, text);
      wait.hidden = !live || message.content !== "";
      note.textContent = message.note ?? "";
      error.hidden = !message.error;
      error.textContent = message.error ?? "";
      foot.hidden = live && message.content === "";
      for (const button of foot.querySelectorAll("button")) button.hidden = live || (button !== retry && !message.content);
    },
  };
}

function showChat() {
  $("messages").replaceChildren();
  for (const message of chat.messages) show(message).update(false);
  $("empty").hidden = chat.messages.length > 0;
  $("log").scrollTop = $("log").scrollHeight;
}

function setRunning(controller) {
  running = controller;
  $("log").ariaBusy = String(Boolean(running));
  $("send").classList.toggle("busy", Boolean(running));
  $("send").ariaLabel = $("send").title = running ? "Stop (Esc)" : "Send (Enter)";
  $("send").disabled = !running && !$("prompt").value.trim();
}

// ---- Answers.

/** Tokens and speed. Until the server has counted them, a piece of text counts as a token. */
function speed(times, tokens) {
  const seconds = (times.last - times.first) / 1000;
  const rate = tokens > 1 && seconds > 0 ? ` · ${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
  return `${tokens} tokens${rate} · first after ${((times.first - times.start) / 1000).toFixed(2)} s`;
}

async function streamAnswer(sent, reply, controller, changed) {
  const times = {start: performance.now(), first: 0, last: 0};
  let pieces = 0, reason = "";
  if (!$("model").value) await loadModels();
  const body = {model: $("model").value, messages: sent, stream: true, stream_options: {include_usage: true}, ...sampling()};
  const options = {method: "POST", body: JSON.stringify(body), signal: controller.signal};
  for await (const event of events(await request("v1/chat/completions", options))) {
    if (event.error) throw new ServerError(event.error.message ?? "The server failed.");
    const [choice] = event.choices ?? [], piece = choice?.delta?.content;
    reason = choice?.finish_reason ?? reason;
    if (piece) {
      times.last = performance.now();
      times.first ||= times.last;
      reply.content += piece;
      pieces++;
    }
    if (times.first) reply.note = speed(times, event.usage?.completion_tokens ?? pieces);
    changed();
  }
  if (reason === "length") reply.note += " · cut off: no tokens left";
  if (!reply.content) reply.note = "The model gave an empty answer.";
}

async function answer() {
  const reply = {role: "assistant", content: ""}, controller = new AbortController();
  let shown, frame = 0;
  const changed = () => { // at most once a frame
    frame ||= requestAnimationFrame(() => { frame = 0; keepingEnd(() => shown.update(true)); });
  };
  keepingEnd(() => { shown = show(reply); shown.update(true); });
  $("log").scrollTop = $("log").scrollHeight;
  const mine = chat, sent = history(mine); // another conversation may be opened while this answer streams
  mine.messages.push(reply);
  setRunning(controller);
  announce("Answering.");
  try {
    await streamAnswer(sent, reply, controller, changed);
    announce("The answer is complete.");
  } catch (error) {
    if (controller.signal.aborted) {
      reply.note = [reply.note, "stopped"].filter(Boolean).join(" · ");
      announce("Stopped.");
    } else {
      reply.error = error instanceof ServerError ? error.message : `The server's answer makes no sense: ${error.message}`;
      announce(reply.error);
      if (error.status === 401) openSettings($("key"));
    }
  }
  cancelAnimationFrame(frame);
  keepingEnd(() => shown.update(false));
  saveChat(mine);
  setRunning(null);
}

function send() {
  const text = $("prompt").value.trim();
  if (!text || running) return;
  const message = {role: "user", content: text};
  chat.messages.push(message);
  show(message);
  $("empty").hidden = true;
  $("prompt").value = "";
  saveChat(chat);
  answer();
}

function tryAgain() {
  if (running) return;
  while (chat.messages.at(-1)?.role === "assistant") chat.messages.pop();
  showChat();
  answer();
}

function openChat(next) {
  if (running) running.abort();
  chat = next;
  showChat();
  $("prompt").focus();
}

// ---- Dialogs, theme and keys.

function openSettings(field) {
  showSettings();
  $("settings").showModal();
  field?.focus();
}

function connect() {
  loadModels().then(() => announce(""), (error) => {
    announce(error.message);
    if (error.status === 401) openSettings($("key"));
  });
}

function listChats() {
  const rows = allChats().map((one) => {
    const title = element("button", {className: "title", onclick: () => { $("chats").close(); openChat(one); }}, titleOf(one));
    if (one.id === chat.id) title.ariaCurrent = "true";
    const remove = element("button", {className: "quiet", ariaLabel: `Delete ${titleOf(one)}`, onclick: () => removeChats([one])}, "Delete");
    return element("div", {className: "row"}, title, remove);
  });
  $("chat-list").replaceChildren(...(rows.length ? rows : [element("p", {}, "None yet.")]));
  $("delete-all").hidden = rows.length < 2;
}

function removeChats(chats) {
  if (chats.length > 1 && !confirm(`Delete all ${chats.length} conversations?`)) return;
  for (const {id} of chats) localStorage.removeItem(CHAT + id);
  if (chats.some(({id}) => id === chat.id)) openChat(newChat());
  listChats();
  $("close-chats").focus();
}

const THEMES = {system: "light dark", dark: "dark", light: "light"};

function setTheme(theme) {
  document.documentElement.style.colorScheme = THEMES[theme];
  $("theme").dataset.theme = theme;
  $("theme").ariaLabel = $("theme").title = `Theme: ${theme}`;
}

$("theme").onclick = () => {
  const names = Object.keys(THEMES), next = names[(names.indexOf($("theme").dataset.theme) + 1) % names.length];
  setTheme(next);
  try {
    localStorage.setItem(THEME, JSON.stringify(next));
  } catch { /* lasts until the page is left */ }
};
$("open-settings").onclick = () => openSettings();
$("settings").onclose = () => {
  saveSettings();
  if (!$("model").value) connect();
  $("prompt").focus();
};
$("defaults").onclick = () => {
  for (const {name} of FIELDS) $(name).value = "";
  $("system").value = "";
};
$("open-chats").onclick = () => { listChats(); $("chats").showModal(); };
$("close-chats").onclick = () => $("chats").close();
$("delete-all").onclick = () => removeChats(allChats());
$("new-chat").onclick = () => openChat(newChat());
$("model").onchange = () => { document.title = $("model").value; };

$("composer").onsubmit = (event) => {
  event.preventDefault();
  if (running) running.abort();
  else send();
};
$("prompt").oninput = () => setRunning(running);
$("prompt").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // Enter also ends an input method's word
  event.preventDefault();
  send();
};
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) running.abort();
});
addEventListener("pagehide", () => saveChat(chat));

setTheme(Object.hasOwn(THEMES, read(localStorage, THEME)) ? read(localStorage, THEME) : "system");
showSettings();
setRunning(null);
chat = allChats()[0] ?? chat;
showChat();
connect();
