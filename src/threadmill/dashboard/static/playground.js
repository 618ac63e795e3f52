// The playground. What models say is put in as text; a message that is done, as the server shows it.
const { say, options } = document.forms;
const byId = (id) => document.getElementById(id);
const seats = [...document.querySelectorAll(".seat")].map((place) => ({
  place,
  list: place.querySelector("ol"),
  facts: place.querySelector(".facts"),
  thread: place.dataset.thread,
  run: { id: place.dataset.run },
  last: 0,
  made: [],
  shown: Promise.resolve(),
}));
const isBusy = (seat) => seat.isLive || seat.run.status === "requires_action";
const pathOf = (seat) => `/threads/${seat.thread}/runs/${seat.run.id}`;
const setup = () => byId("setup");
let done = { outputs: {} }; // what a program can be made of

function a(name, texts) {
  const made = byId(`a-${name}`).content.firstElementChild.cloneNode(true);
  for (const where in texts) made.querySelector(where).textContent = texts[where];
  return made;
}

function line(seat, name, id, texts) {
  byId(id)?.remove();
  const made = Object.assign(a(name, texts), { id });
  seat.list.append(made);
  return made;
}

function tell(error) {
  byId("problem").textContent = error?.message ?? "";
}

async function ask(path, body) {
  const json = { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  const sent = body instanceof FormData ? { body } : json;
  const answer = await fetch(`/ui/api/v1${path}`, body && { method: "POST", ...sent });
  if (answer.ok) return answer;
  throw Object.assign(new Error((await answer.json()).error.message), { isFinal: true });
}

const get = async (path, body) => (await ask(path, body)).json();

// Lines may be cut anywhere between two reads.
async function* events(answer) {
  const [reader, decoder] = [answer.body.getReader(), new TextDecoder()];
  for (let rest = "", event = {}, read; !(read = await reader.read()).done;) {
    const lines = (rest + decoder.decode(read.value, { stream: true })).split(/\r?\n/);
    rest = lines.pop();
    for (const one of lines) {
      if (!one && event.data) yield event;
      if (!one) event = {};
      const [, name, value] = /^([^:]*):? ?(.*)/s.exec(one);
      event[name] = name === "data" && event.data ? `${event.data}\n${value}` : value;
    }
  }
}

// To the end of what a request streams. If it breaks, behind the last event that came.
async function listen(seat, path, body) {
  Object.assign(seat, { isLive: true, since: performance.now(), count: 0, first: "" });
  let asked = ask(path, body);
  try {
    const shown = path.replace(/(thread|run)_\w+/g, "$1_…");
    note(seat, 0, `${body ? "POST" : "GET"} ${shown}`, JSON.stringify(body));
    for (let tries = 0; ; tries += 1) {
      try {
        for await (const event of events(await asked)) {
          if (event.event !== "error") tries = 0;
          hear(seat, event);
          if (event.event === "done") return;
        }
      } catch (error) {
        if (error.isFinal || tries > 5 || !seat.run.id) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, 200 * 2 ** tries));
      asked = ask(`${pathOf(seat)}/events?after=${seat.last}`);
    }
  } catch (error) {
    tell(error);
  } finally {
    seat.isLive = false;
    flush();
    for (const id of seat.made) showMessage(seat, id);
  }
}

function hear(seat, { id, event, data }) {
  const ms = performance.now() - seat.since;
  seat.last = id ?? seat.last;
  seat.count += 1;
  if (event !== "done") {
    const told = JSON.parse(data);
    heard[told.object]?.(seat, told, event, ms);
  }
  note(seat, ms, event, `${id} ${data}`);
}

// What was said is shown at once. The wire follows ten times a second: drawing it takes longer than
// an answer takes to come.
const waiting = [];
function note(seat, ms, name, data) {
  if (waiting.push([seat.place.id, ms, name, data]) === 1) setTimeout(flush, 100);
}

function flush() {
  const wire = byId("wire");
  wire.append(...waiting.splice(0).map(([className, ms, code, pre]) =>
    Object.assign(a("event", { span: `${ms.toFixed(0)} ms`, code, pre }), { className })));
  while (wire.childElementCount > 3000) wire.firstElementChild.remove();
  update();
}

const heard = {
  "thread.run"(seat, run) {
    seat.run = run;
    tell(run.last_error);
    for (const form of seat.list.querySelectorAll("fieldset")) form.disabled = true;
    if (run.status === "requires_action") put(seat, `/ui/playground/calls/${run.id}`, seat.list, "beforeend");
  },
  "thread.message"(seat, { id, role, status }, event) {
    if (event.endsWith("created")) seat.made.push(line(seat, "message", id, { b: role }).id);
    else if (status !== "in_progress") showMessage(seat, id);
  },
  "thread.message.delta"(seat, { id, delta }, _, ms) {
    const said = delta.content.map((part) => part.text?.value ?? part.refusal ?? "").join("");
    byId(id)?.querySelector(".live")?.append(said);
    if (said) seat.first ||= ms;
  },
  "thread.run.step.delta"(seat, { id, delta }) {
    for (const { index, type, code_interpreter: code } of delta.step_details.tool_calls ?? []) {
      if (type === "function") continue; // a form will ask for it
      const at = `${id}-${index}`;
      const step = byId(at) ?? line(seat, "step", at, { b: type });
      step.querySelector("pre").append(code?.input ?? "");
      for (const { image, logs } of code?.outputs ?? []) {
        const made = document.createElement(image ? "img" : "pre");
        made.append(logs ?? "");
        if (image) Object.assign(made, { src: `/ui/files/${image.file_id}`, alt: "Drawn by code" });
        step.append(made);
      }
    }
  },
};

const put = (seat, path, target, swap, more) =>
  (seat.shown = seat.shown.then(() => htmx.ajax("GET", path, { target, swap, ...more })).catch(tell));
const showMessage = (seat, id) =>
  put(seat, `/ui/threads/${seat.thread}/messages/${id}`, `#${id}`, "outerHTML");

function update() {
  for (const { list, facts, isLive, run, first, count = 0 } of seats) {
    list.ariaBusy = !!isLive;
    Object.assign(facts.dataset, { first, count });
    if (!run.status) continue;
    facts.hidden = false;
    const [link, told] = facts.children;
    link.href = `/ui/runs/${run.id}`;
    link.className = `status ${run.status}`;
    link.textContent = run.status.replaceAll("_", " ");
    told.textContent = `${run.model} · ${count} events${first && ` · first text ${first.toFixed(0)} ms`}`;
  }
  say.send.disabled = seats.some(isBusy);
  say.stop.hidden = !say.send.disabled;
  say.done.value = JSON.stringify(done);
}

// What the fields of a form say: a number or JSON where the API takes one.
const fields = (form) => Object.fromEntries([...new FormData(form)].map(([name, text]) => {
  const isJson = form.elements[name].matches?.("[type=number], .json");
  return [name, isJson ? JSON.parse(text.trim() || null) : text.trim() || null];
}));

function described() {
  const { assistant, tool, functions, schema, ...told } = fields(setup());
  const ticked = [...setup().querySelectorAll("[name=tool]:checked")];
  told.tools = ticked.map((one) => JSON.parse(one.value));
  for (const one of [functions ?? []].flat())
    told.tools.push(one.function ? one : { type: "function", function: one });
  if (told.response_format.type === "json_schema") told.response_format.json_schema = schema;
  return told;
}

async function save() {
  const { assistant } = setup();
  const saved = await get(`/assistants${assistant.value && `/${assistant.value}`}`, described());
  if (!assistant.value) assistant.add(new Option("", saved.id, true, true));
  assistant.selectedOptions[0].text = saved.name ?? saved.id;
  setup().classList.remove("changed");
  remember();
}

function remember() {
  const { thread } = seats[0];
  byId("fresh").href = `/ui/playground?assistant=${setup().assistant.value}`;
  history.replaceState(history.state, "", byId("fresh").href + (thread ? `&thread=${thread}` : ""));
}

async function send() {
  tell();
  say.send.disabled = true;
  const told = fields(options);
  const { name, ...over } = described();
  const tools = over.tools.filter((one) => !one.function).map(({ type }) => ({ type }));
  const rows = [...byId("chosen").children];
  const files = await Promise.all(rows.map((one) => one.file));
  const text = say.text.value.trim();
  const [parts, attachments] = [text ? [{ type: "text", text }] : [], []];
  for (const { id, purpose } of files) {
    if (purpose === "vision") parts.push({ type: "image_file", image_file: { file_id: id } });
    else attachments.push({ file_id: id, tools });
  }
  if (attachments[0] && !tools[0]) throw new Error("Tick file_search or code_interpreter.");
  const content = files.length > attachments.length ? parts : text;
  const message = files[0] || text ? { role: "user", content, attachments } : null;
  const [one, two] = seats;
  done = { thread_id: one.thread, message, outputs: {} };
  if (!setup().assistant.value) {
    done.assistant = { name, ...over };
    await save();
  }
  const assistant_id = setup().assistant.value;
  const run = { assistant_id, ...(setup().matches(".changed") && over), ...told, stream: true };
  Object.assign(done, { assistant_id, run });
  const second = say.second.value.trim();
  two.place.hidden = !second;
  if (!second) two.thread = undefined; // what it misses, a new copy will have
  else if (!two.thread) {
    const last = [...one.list.querySelectorAll(".message[id^=msg_]")].at(-1);
    if (last) {
      const body = new URLSearchParams({ message_id: last.id });
      const copy = await fetch(`/ui/threads/${one.thread}/fork`, { method: "POST", body });
      if (!copy.ok) throw new Error("It could not be copied.");
      two.thread = copy.url.split("/").pop();
      put(two, `/ui/playground?thread=${two.thread}`, two.list, "innerHTML", { select: "#first .conversation > li" });
    }
  }
  await Promise.all((second ? seats : [one]).map(async (seat) => {
    seat.thread ??= (await get("/threads", {})).id;
    seat.run = {};
    remember();
    if (message) {
      await seat.shown;
      const sent = get(`/threads/${seat.thread}/messages`, message);
      const said = line(seat, "message", "", { b: "user", p: text }); // shown whole when there is time
      say.text.value = "";
      byId("chosen").replaceChildren();
      try {
        seat.made = [said.id = (await sent).id];
      } catch (error) {
        said.remove();
        say.text.value ||= text;
        byId("chosen").append(...rows);
        throw error;
      }
    }
    await listen(seat, `/threads/${seat.thread}/runs`, seat === two ? { ...run, model: second } : run);
  }));
}

async function answer(form) {
  const seat = seats.find(({ list }) => list.contains(form));
  if (seat.isLive) return;
  const tool_outputs = [...form.querySelectorAll("textarea")].map((one) => {
    done.outputs[one.dataset.function] = one.value;
    return { tool_call_id: one.name, output: one.value };
  });
  say.text.focus();
  await listen(seat, `${pathOf(seat)}/submit_tool_outputs`, { tool_outputs, stream: true });
}

async function stop() {
  for (const seat of seats.filter(isBusy)) {
    await ask(`${pathOf(seat)}/cancel`, {});
    if (!seat.isLive) listen(seat, `${pathOf(seat)}/events?after=${seat.last}`);
  }
}

function choose(files) {
  for (const file of files) {
    const body = new FormData();
    body.append("purpose", /^image\/(png|jpeg|gif|webp)$/.test(file.type) ? "vision" : "assistants");
    body.append("file", file);
    const row = a("file", { span: file.name });
    row.querySelector("button").onclick = () => row.remove();
    row.file = get("/files", body);
    row.file.catch((error) => { tell(error); row.remove(); });
    byId("chosen").append(row);
  }
}

byId("needs-scripts").remove();
document.addEventListener("submit", (event) => {
  const act = { send, save, answer }[event.target.dataset.act];
  if (act) event.preventDefault();
  act?.(event.target).catch(tell).finally(update);
});
say.text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  say.send.click();
});
say.stop.onclick = () => stop().catch(tell);
say.files.onchange = () => { choose(say.files.files); say.files.value = ""; };
document.addEventListener("input", ({ target }) => target.closest("#setup")?.classList.add("changed"));
for (const name of ["dragover", "drop"]) byId("main").addEventListener(name, (event) => {
  event.preventDefault();
  choose(event.dataTransfer.files);
});
if (seats[0].run.id) listen(seats[0], `${pathOf(seats[0])}/events`);
