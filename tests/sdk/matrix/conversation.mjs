// Conversations with a server through the official SDK of Node, of whichever generation.
//
//     node conversation.mjs http://127.0.0.1:8000/v1 KEY
//
// in a folder where the package `openai` is installed, on Node 20 or newer. The flows are those of
// conversation.py, under the same names; the model behind the server answers as replies.py says.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const require = createRequire(join(process.cwd(), "here.js"));
const openai = require("openai");
const { OpenAI, AzureOpenAI, toFile } = openai;
const { AssistantStream } = require("openai/lib/AssistantStream");

const [baseURL, apiKey] = process.argv.slice(2);
const options = { baseURL, apiKey, maxRetries: 0, timeout: 30_000 };

const PNG = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAA" +
    "AElFTkSuQmCC",
  "base64",
);
const TOOLS = [declared("get_weather", "city"), declared("get_clothes", "weather")];

const RUN_BEGINS = ["thread.run.created", "thread.run.queued", "thread.run.in_progress"];
const MESSAGE_BEGINS = [
  "thread.run.step.created",
  "thread.run.step.in_progress",
  "thread.message.created",
  "thread.message.in_progress",
  "thread.message.delta",
];
const MESSAGE_ENDS = ["thread.message.completed", "thread.run.step.completed"];
const CALLS = ["thread.run.step.created", "thread.run.step.in_progress", "thread.run.step.delta"];
const TEXT_RUN = [...RUN_BEGINS, ...MESSAGE_BEGINS, ...MESSAGE_ENDS, "thread.run.completed"];

const flows = {
  // --- objects ---

  async assistants(client) {
    const made = [];
    for (let n = 0; n < 5; n++) {
      made.push(
        await client.beta.assistants.create({
          model: "scripted",
          name: `Number ${n}`,
          description: "One of five",
          tools: TOOLS,
          metadata: { batch: "one" },
          temperature: 0.5,
          response_format: { type: "json_object" },
        }),
      );
    }
    const [first] = made;
    assert.match(first.id, /^asst_[A-Za-z0-9]{24}$/);
    assert.equal(first.tools[1].function.name, "get_clothes");
    assert.deepEqual(await client.beta.assistants.retrieve(first.id), first);
    const changed = await client.beta.assistants.update(first.id, { name: "Uno", metadata: {} });
    const { name, description, metadata } = changed;
    assert.deepEqual([name, description, metadata], ["Uno", "One of five", {}]);

    const ids = made.map((assistant) => assistant.id);
    const forwards = await idsOf(client.beta.assistants.list({ limit: 2, order: "asc" }));
    assert.deepEqual(forwards.filter((id) => ids.includes(id)), ids);
    assert.equal(new Set(forwards).size, forwards.length);
    const backwards = await idsOf(client.beta.assistants.list({ limit: 2 }));
    assert.deepEqual(backwards.filter((id) => ids.includes(id)), ids.toReversed());

    for (const id of ids) {
      assert.equal((await remove(client.beta.assistants, {}, id)).deleted, true);
    }
    await refused(openai.NotFoundError, `No assistant found with id '${first.id}'.`, () =>
      client.beta.assistants.retrieve(first.id),
    );
  },

  async threads(client) {
    const empty = await client.beta.threads.create();
    assert.deepEqual([empty.object, empty.metadata], ["thread", {}]);
    const image = { type: "image_url", image_url: { url: "https://example.com/a.png" } };
    const thread = await client.beta.threads.create({
      messages: [
        { role: "user", content: "One", metadata: { n: "1" } },
        { role: "assistant", content: "Two" },
        { role: "user", content: [{ type: "text", text: "Three" }, image] },
      ],
      metadata: { topic: "numbers" },
    });
    assert.deepEqual(await client.beta.threads.retrieve(thread.id), thread);
    const listed = (await client.beta.threads.messages.list(thread.id, { order: "asc" })).data;
    assert.deepEqual(listed.map(textOf), ["One", "Two", "Three"]);
    assert.deepEqual(listed[0].metadata, { n: "1" });
    assert.equal(listed[2].content[1].image_url.url, "https://example.com/a.png");
    const changed = await client.beta.threads.update(thread.id, { metadata: { topic: "letters" } });
    assert.deepEqual(changed.metadata, { topic: "letters" });
    assert.equal((await remove(client.beta.threads, {}, thread.id)).deleted, true);
    await refused(openai.NotFoundError, `No thread found with id '${thread.id}'.`, () =>
      client.beta.threads.retrieve(thread.id),
    );
  },

  async messages(client) {
    const thread = await client.beta.threads.create();
    const inThread = { thread_id: thread.id };
    const { messages, runs } = client.beta.threads;
    const made = [];
    for (let n = 0; n < 5; n++) {
      made.push(await messages.create(thread.id, { role: "user", content: `say: ${n}` }));
    }
    const [first, second] = made;
    assert.deepEqual([first.status, first.attachments, first.run_id], ["completed", [], null]);
    assert.deepEqual(await nested(messages, "retrieve", inThread, first.id), first);
    const run = await runs.createAndPoll(thread.id, { assistant_id: await assistant(client) });
    const ofRun = await messages.list(thread.id, { run_id: run.id });
    assert.deepEqual(ofRun.data.map(textOf), ["4"]);
    const asc = await all(messages.list(thread.id, { limit: 2, order: "asc" }));
    assert.deepEqual(asc.map(textOf), ["say: 0", "say: 1", "say: 2", "say: 3", "say: 4", "4"]);
    const desc = await all(messages.list(thread.id, { limit: 2 }));
    assert.deepEqual(desc.map(textOf), asc.map(textOf).toReversed());
    const metadata = { seen: "yes" };
    const changed = await nested(messages, "update", inThread, second.id, { metadata });
    assert.deepEqual([changed.metadata, textOf(changed)], [metadata, "say: 1"]);
    assert.equal((await remove(messages, inThread, second.id)).deleted, true);
    await refused(openai.NotFoundError, `No message found with id '${second.id}'.`, () =>
      nested(messages, "retrieve", inThread, second.id),
    );
  },

  async models(client) {
    assert.ok((await idsOf(client.models.list())).includes("scripted"));
    assert.equal((await client.models.retrieve("scripted")).object, "model");
    await refused(openai.NotFoundError, "The model 'nobody' does not exist", () =>
      client.models.retrieve("nobody"),
    );
  },

  // --- runs ---

  async polling(client) {
    const thread = await asked(client, "say: Good morning to you");
    const assistant_id = await assistant(client, { instructions: "Be polite." });
    const started = performance.now();
    const run = await client.beta.threads.runs.createAndPoll(thread.id, { assistant_id });
    const took_ms = performance.now() - started;
    assert.ok(took_ms < 1000, `createAndPoll took ${took_ms} ms: openai-poll-after-ms is missing?`);
    assert.deepEqual([run.status, run.instructions], ["completed", "Be polite."]);
    assert.ok(run.usage.total_tokens > 0);
    assert.equal(await lastText(client, thread.id), "Good morning to you");
    assert.deepEqual(await idsOf(client.beta.threads.runs.list(thread.id)), [run.id]);
    const { runs } = client.beta.threads;
    const metadata = { a: "b" };
    const changed = await nested(runs, "update", { thread_id: thread.id }, run.id, { metadata });
    assert.deepEqual(changed.metadata, metadata);
  },

  async polling_by_hand(client) {
    const thread = await asked(client, "say: By hand");
    const assistant_id = await assistant(client);
    const run = await client.beta.threads.runs.create(thread.id, { assistant_id });
    assert.deepEqual([run.status, run.started_at, run.usage], ["queued", null, null]);
    assert.equal((await untilOver(client, run)).status, "completed");
    assert.equal(await lastText(client, thread.id), "By hand");
  },

  async overrides(client) {
    const thread = await asked(client, "say: never mind");
    const run = await client.beta.threads.runs.createAndPoll(thread.id, {
      assistant_id: await assistant(client, { instructions: "Be brief.", temperature: 0.5 }),
      model: "another",
      instructions: "Be long.",
      additional_instructions: "And kind.",
      additional_messages: [
        { role: "assistant", content: "Never." },
        { role: "user", content: "repeat: it" },
      ],
      tools: TOOLS.slice(0, 1),
      tool_choice: "none",
      parallel_tool_calls: false,
      temperature: 0,
      truncation_strategy: { type: "last_messages", last_messages: 2 },
      metadata: { kind: "changed" },
    });
    assert.deepEqual([run.status, run.model, run.temperature], ["completed", "another", 0]);
    assert.deepEqual([run.tool_choice, run.parallel_tool_calls], ["none", false]);
    const heard = await lastText(client, thread.id);
    assert.ok(heard.endsWith("assistant=Never. | user=repeat: it"), heard);
    assert.ok(heard.startsWith("system=Be long.\n\nAnd kind."), heard);
  },

  async thread_and_run(client) {
    const run = await client.beta.threads.createAndRunPoll({
      assistant_id: await assistant(client),
      thread: { messages: [{ role: "user", content: "say: At once" }] },
    });
    assert.equal(run.status, "completed");
    assert.equal(await lastText(client, run.thread_id), "At once");
  },

  async functions(client) {
    const thread = await asked(client, "weather: Paris, Rome");
    const { runs } = client.beta.threads;
    const assistant_id = await assistant(client, { tools: TOOLS });
    const waiting = await runs.createAndPoll(thread.id, { assistant_id });
    assert.deepEqual([waiting.status, waiting.usage], ["requires_action", null]);
    const ids = waiting.required_action.submit_tool_outputs.tool_calls.map((call) => call.id);
    const inThread = { thread_id: thread.id };
    const tool_outputs = outputsFor(waiting);
    const text = `Expected tool outputs for call_ids ['${ids[0]}', '${ids[1]}'], got ['${ids[0]}']`;
    await refused(openai.BadRequestError, text, () =>
      nested(runs, "submitToolOutputs", inThread, waiting.id, {
        tool_outputs: tool_outputs.slice(0, 1),
      }),
    );
    const run = await nested(runs, "submitToolOutputsAndPoll", inThread, waiting.id, {
      tool_outputs,
    });
    assert.deepEqual([run.status, run.required_action], ["completed", null]);
    assert.equal(await lastText(client, thread.id), "It is 21 in Paris and 24 in Rome");
  },

  async steps(client) {
    const thread = await asked(client, "clothes: Paris, Rome");
    const { runs } = client.beta.threads;
    const inThread = { thread_id: thread.id };
    const assistant_id = await assistant(client, { tools: TOOLS });
    let run = await runs.createAndPoll(thread.id, { assistant_id });
    while (run.status === "requires_action") {
      const tool_outputs = outputsFor(run);
      run = await nested(runs, "submitToolOutputsAndPoll", inThread, run.id, { tool_outputs });
    }
    const include = ["step_details.tool_calls[*].file_search.results[*].content"];
    const query = { order: "asc", limit: 3, include };
    const found = await all(nested(runs.steps, "list", inThread, run.id, query));
    assert.deepEqual(
      found.map((step) => step.type),
      ["message_creation", "tool_calls", "tool_calls", "message_creation"],
    );
    const outputs = found[1].step_details.tool_calls.map((call) => call.function.output);
    assert.deepEqual(outputs, ["21 in Paris", "24 in Rome"]);
    const inRun = { thread_id: thread.id, run_id: run.id };
    const last = await nested(runs.steps, "retrieve", inRun, found[3].id, { include });
    assert.deepEqual(last, found[3]);
  },

  async cancelling(client) {
    const thread = await asked(client, "weather: Oslo");
    const { runs } = client.beta.threads;
    const inThread = { thread_id: thread.id };
    const assistant_id = await assistant(client, { tools: TOOLS });
    const waiting = await runs.createAndPoll(thread.id, { assistant_id });
    const cancelling = await nested(runs, "cancel", inThread, waiting.id);
    assert.equal(cancelling.status, "cancelling");
    assert.equal((await nested(runs, "poll", inThread, waiting.id)).status, "cancelled");
    await refused(openai.BadRequestError, "Cannot cancel run with status 'cancelled'.", () =>
      nested(runs, "cancel", inThread, waiting.id),
    );
    const tool_outputs = outputsFor(waiting);
    const text = 'Runs in status "cancelled" do not accept tool outputs.';
    await refused(openai.BadRequestError, text, () =>
      nested(runs, "submitToolOutputs", inThread, waiting.id, { tool_outputs }),
    );
  },

  async failing(client) {
    const thread = await asked(client, "fail: please");
    const assistant_id = await assistant(client);
    const run = await client.beta.threads.runs.createAndPoll(thread.id, { assistant_id });
    assert.deepEqual([run.status, run.last_error.code], ["failed", "invalid_prompt"]);
    assert.match(run.last_error.message, /This cannot be answered\./);
    const heard = await listened(client.beta.threads.runs.stream(thread.id, { assistant_id }));
    assert.deepEqual(heard.events, [...RUN_BEGINS, "thread.run.failed"]);
    assert.equal(heard.run.status, "failed");
  },

  async incomplete(client) {
    const thread = await asked(client, "cut: This is not");
    const assistant_id = await assistant(client);
    const limits = { assistant_id, max_completion_tokens: 300 };
    const run = await client.beta.threads.runs.createAndPoll(thread.id, limits);
    const reason = run.incomplete_details.reason;
    assert.deepEqual([run.status, reason], ["incomplete", "max_completion_tokens"]);
    const ends = [
      "thread.message.incomplete",
      "thread.run.step.completed",
      "thread.run.incomplete",
    ];
    const told = [...RUN_BEGINS, ...MESSAGE_BEGINS, ...ends];
    const stream = await client.beta.threads.runs.create(thread.id, { ...limits, stream: true });
    assert.deepEqual(onceEach((await all(stream)).map((event) => event.event)), told);
    // The helper of version 4 does not take this for the end of a run.
    if (isPositional(client.beta.threads)) return;
    const heard = await listened(client.beta.threads.runs.stream(thread.id, limits));
    assert.deepEqual([heard.events, heard.text], [told, "This is not"]);
    assert.equal(heard.run.status, "incomplete");
    assert.equal(heard.messages[0].incomplete_details.reason, "max_tokens");
  },

  // --- streams ---

  async iterating(client) {
    const thread = await asked(client, "say: Word by word");
    const assistant_id = await assistant(client);
    const stream = await client.beta.threads.runs.create(thread.id, { assistant_id, stream: true });
    const events = await all(stream);
    assert.deepEqual(onceEach(events.map((event) => event.event)), TEXT_RUN);
    const deltas = events.filter((event) => event.event === "thread.message.delta");
    assert.deepEqual(
      deltas.map((event) => event.data.delta.content[0].text.value),
      ["Word ", "by ", "word"],
    );
    const run = events.at(-1).data;
    const inThread = { thread_id: thread.id };
    assert.deepEqual(await nested(client.beta.threads.runs, "retrieve", inThread, run.id), run);
  },

  async listening(client) {
    const thread = await asked(client, "say: Word by word");
    const assistant_id = await assistant(client);
    const stream = client.beta.threads.runs.stream(thread.id, { assistant_id });
    const heard = await listened(stream);
    assert.deepEqual([heard.events, heard.text], [TEXT_RUN, "Word by word"]);
    assert.deepEqual([heard.textsDone, heard.run.status], [["Word by word"], "completed"]);
    assert.deepEqual(heard.messages.map(textOf), ["Word by word"]);
    assert.deepEqual((await stream.finalMessages()).map(textOf), ["Word by word"]);
    assert.equal(heard.steps.length, 1);
  },

  async thread_and_run_streamed(client) {
    const assistant_id = await assistant(client);
    const thread = { messages: [{ role: "user", content: "say: At once" }] };
    const raw = await client.beta.threads.createAndRun({ assistant_id, thread, stream: true });
    const names = (await all(raw)).map((event) => event.event);
    assert.deepEqual(onceEach(names), ["thread.created", ...TEXT_RUN]);
    const stream = client.beta.threads.createAndRunStream({ assistant_id, thread });
    const heard = await listened(stream);
    assert.deepEqual([heard.text, heard.run.status], ["At once", "completed"]);
  },

  async functions_streamed(client) {
    const thread = await asked(client, "clothes: Paris, Rome");
    const { runs } = client.beta.threads;
    const assistant_id = await assistant(client, { tools: TOOLS });
    const first = await listened(runs.stream(thread.id, { assistant_id }));
    const goOn = (run) =>
      listened(
        nested(runs, "submitToolOutputsStream", { thread_id: thread.id }, run.id, {
          tool_outputs: outputsFor(run),
        }),
      );
    const second = await goOn(first.run);
    const third = await goOn(second.run);

    const resumes = ["thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"];
    const acts = "thread.run.requires_action";
    assert.deepEqual(
      first.events,
      [...RUN_BEGINS, ...MESSAGE_BEGINS, ...MESSAGE_ENDS, ...CALLS, acts],
    );
    assert.deepEqual([first.text, first.callsCreated], ["Let me look.", 2]);
    assert.equal(first.arguments, '{"city": "Paris"}{"city": "Rome"}');
    assert.match(first.steps[1].step_details.tool_calls[0].id, /^call_[A-Za-z0-9]+$/);
    assert.deepEqual(second.events, [...resumes, ...CALLS, acts]);
    assert.equal(second.arguments, '{"weather": "21 in Paris, 24 in Rome"}');
    assert.deepEqual(
      third.events,
      [...resumes, ...MESSAGE_BEGINS, ...MESSAGE_ENDS, "thread.run.completed"],
    );
    assert.deepEqual([third.text, third.run.status], ["Take a coat.", "completed"]);
  },

  async cancelling_streamed(client) {
    const thread = await asked(client, "hang: Once upon a");
    const assistant_id = await assistant(client);
    const { runs } = client.beta.threads;
    const stream = runs.stream(thread.id, { assistant_id });
    stream.on("textDelta", (delta) => {
      if (delta.value.includes("a")) {
        void nested(runs, "cancel", { thread_id: thread.id }, stream.currentRun().id);
      }
    });
    const heard = await listened(stream);
    const ends = [
      "thread.run.cancelling",
      "thread.message.incomplete",
      "thread.run.step.cancelled",
      "thread.run.cancelled",
    ];
    assert.deepEqual(heard.events, [...RUN_BEGINS, ...MESSAGE_BEGINS, ...ends]);
    assert.equal(heard.run.status, "cancelled");
    assert.equal(heard.messages[0].incomplete_details.reason, "run_cancelled");
  },

  async leaving(client) {
    const thread = await asked(client, "drip: I go on and on");
    const assistant_id = await assistant(client);
    const stream = await client.beta.threads.runs.create(thread.id, { assistant_id, stream: true });
    let run;
    for await (const event of stream) {
      run ??= event.data;
      if (event.event === "thread.message.delta") break;
    }
    assert.equal((await untilOver(client, run)).status, "completed");
    assert.equal(await lastText(client, thread.id), "I go on and on");
  },

  async web_stream(client) {
    // What a web application passes on to the browser, where it becomes a stream again.
    const thread = await asked(client, "say: Through the browser");
    const assistant_id = await assistant(client);
    const stream = client.beta.threads.runs.stream(thread.id, { assistant_id });
    const heard = await listened(AssistantStream.fromReadableStream(stream.toReadableStream()));
    assert.deepEqual([heard.events, heard.text], [TEXT_RUN, "Through the browser"]);
  },

  async refusal(client) {
    const thread = await asked(client, "refuse: Not this one");
    const assistant_id = await assistant(client);
    const heard = await listened(client.beta.threads.runs.stream(thread.id, { assistant_id }));
    assert.deepEqual(heard.events, TEXT_RUN);
    const content = [{ type: "refusal", refusal: "Not this one" }];
    assert.deepEqual(heard.messages[0].content, content);
  },

  // --- errors ---

  async errors(client) {
    const wrongKey = new OpenAI({ ...options, apiKey: "sk-nobody-knows-this-one" });
    const unknown = await refused(openai.AuthenticationError, "Incorrect API key provided", () =>
      wrongKey.beta.threads.create(),
    );
    assert.deepEqual([unknown.status, unknown.code], [401, "invalid_api_key"]);
    const missing = "asst_" + "0".repeat(24);
    const thread = await asked(client, "say: hi");
    await refused(openai.NotFoundError, `No assistant found with id '${missing}'.`, () =>
      client.beta.threads.runs.create(thread.id, { assistant_id: missing }),
    );
    await refused(openai.NotFoundError, `No assistant found with id '${missing}'.`, () =>
      client.beta.threads.runs.stream(thread.id, { assistant_id: missing }).finalRun(),
    );
    const text = "Invalid type for 'metadata.n': expected a string, but got an integer instead.";
    const invalid = await refused(openai.BadRequestError, text, () =>
      client.beta.threads.create({ metadata: { n: 1 } }),
    );
    assert.deepEqual([invalid.code, invalid.param], ["invalid_type", "metadata.n"]);
    assert.equal(invalid.type, "invalid_request_error");
    assert.match(invalid.requestID ?? invalid.request_id, /^req_/);
  },

  async locking(client) {
    const thread = await asked(client, "hang: on");
    const assistant_id = await assistant(client);
    const { messages, runs } = client.beta.threads;
    const run = await runs.create(thread.id, { assistant_id });
    const message = { role: "user", content: "say: Me too" };
    await refused(
      openai.BadRequestError,
      `Can't add messages to ${thread.id} while a run ${run.id} is active.`,
      () => messages.create(thread.id, message),
    );
    await refused(
      openai.BadRequestError,
      `Thread ${thread.id} already has an active run ${run.id}.`,
      () => runs.create(thread.id, { assistant_id }),
    );
    await nested(runs, "cancel", { thread_id: thread.id }, run.id);
    assert.equal((await untilOver(client, run)).status, "cancelled");
    await messages.create(thread.id, message);
  },

  // --- the other client, files ---

  async azure() {
    const client = new AzureOpenAI({
      endpoint: baseURL.replace(/\/v1$/, ""),
      apiKey,
      apiVersion: "2024-05-01-preview",
      maxRetries: 0,
    });
    await flows.polling(client);
    await flows.functions(client);
    await flows.listening(client);
  },

  async files(client) {
    const upload = await toFile(PNG, "square.png", { type: "image/png" });
    const made = await client.files.create({ file: upload, purpose: "vision" });
    assert.match(made.id, /^file-[A-Za-z0-9]+$/);
    const { bytes, filename, status } = made;
    assert.deepEqual([bytes, filename, status], [PNG.length, "square.png", "processed"]);
    assert.deepEqual(await client.files.retrieve(made.id), made);
    assert.ok((await idsOf(client.files.list({ purpose: "vision" }))).includes(made.id));
    const content = await client.files.content(made.id);
    assert.deepEqual(Buffer.from(await content.arrayBuffer()), PNG);

    const image = { type: "image_file", image_file: { file_id: made.id, detail: "low" } };
    const link = { type: "image_url", image_url: { url: "https://example.com/a.png" } };
    const parts = [{ type: "text", text: "look: here" }, image, link];
    const messages = [{ role: "user", content: parts }];
    const thread = await client.beta.threads.create({ messages });
    const assistant_id = await assistant(client);
    const run = await client.beta.threads.runs.createAndPoll(thread.id, { assistant_id });
    assert.deepEqual([run.status, run.last_error], ["completed", null]);
    const seen = "data:image/png;base64,iVBORw0KGgoAAAANSU, https://example.com/a.png";
    assert.equal(await lastText(client, thread.id), seen);

    const text = await toFile(Buffer.from("Of mine"), "notes.txt");
    const notes = await client.files.create({ file: text, purpose: "assistants" });
    const refusal = "Not allowed to download files of purpose: assistants";
    await refused(openai.BadRequestError, refusal, () => client.files.content(notes.id));
    for (const id of [made.id, notes.id]) {
      assert.equal((await remove(client.files, {}, id)).deleted, true);
    }
    await refused(openai.NotFoundError, `No such File object: ${made.id}`, () =>
      client.files.retrieve(made.id),
    );
  },
};

// --- what the stream helper tells ---

async function listened(stream) {
  const heard = { events: [], text: "", textsDone: [], messages: [] };
  Object.assign(heard, { callsCreated: 0, arguments: "" });
  stream
    .on("event", ({ event }) => {
      if (heard.events.at(-1) !== event) heard.events.push(event);
    })
    .on("textDelta", (delta, snapshot) => {
      heard.text += delta.value;
      assert.equal(snapshot.value, heard.text);
    })
    .on("textDone", (text) => heard.textsDone.push(text.value))
    .on("messageDone", (message) => heard.messages.push(message))
    .on("toolCallCreated", () => heard.callsCreated++)
    .on("toolCallDelta", (delta) => (heard.arguments += delta.function.arguments ?? ""));
  heard.run = await stream.finalRun();
  heard.steps = await stream.finalRunSteps();
  return heard;
}

// --- what the flows share ---

function declared(name, parameter) {
  const parameters = { type: "object", properties: { [parameter]: { type: "string" } } };
  return { type: "function", function: { name, parameters } };
}

async function assistant(client, more = {}) {
  return (await client.beta.assistants.create({ model: "scripted", ...more })).id;
}

function asked(client, text) {
  return client.beta.threads.create({ messages: [{ role: "user", content: text }] });
}

// Version 4 took all ids by position, the outermost first; since 5 only the object's own, and the
// others by name beside the body.
function nested(resource, method, parents, id, body) {
  if (!isPositional(resource)) return resource[method](id, { ...parents, ...body });
  return resource[method](...Object.values(parents), id, ...(body ? [body] : []));
}

function remove(resource, parents, id) {
  const method = "del" in resource ? "del" : "delete";
  return Object.keys(parents).length ? nested(resource, method, parents, id) : resource[method](id);
}

function isPositional(resource) {
  return "del" in resource._client.beta.threads;
}

async function untilOver(client, run) {
  const until = Date.now() + 10_000;
  while (["queued", "in_progress", "cancelling"].includes(run.status)) {
    assert.ok(Date.now() < until, `The run is still ${run.status}.`);
    await sleep(20);
    const inThread = { thread_id: run.thread_id };
    run = await nested(client.beta.threads.runs, "retrieve", inThread, run.id);
  }
  return run;
}

function outputsFor(run) {
  return run.required_action.submit_tool_outputs.tool_calls.map((call) => {
    const weather = call.function.arguments.includes("Paris") ? "21 in Paris" : "24 in Rome";
    const output = call.function.name === "get_weather" ? weather : "a coat";
    return { tool_call_id: call.id, output };
  });
}

async function lastText(client, threadId) {
  return textOf((await client.beta.threads.messages.list(threadId, { limit: 1 })).data[0]);
}

function textOf(message) {
  return message.content.map((part) => part.text?.value ?? "").join("");
}

async function all(listed) {
  const found = [];
  for await (const one of listed) found.push(one);
  return found;
}

async function idsOf(listed) {
  return (await all(listed)).map((one) => one.id);
}

function onceEach(names) {
  return names.filter((name, n) => name !== names[n - 1]);
}

async function refused(kind, text, call) {
  let caught;
  try {
    await call();
  } catch (error) {
    caught = error;
  }
  assert.ok(caught instanceof kind, `${kind.name} should say: ${text}. Instead: ${caught}`);
  assert.ok(caught.error.message.includes(text), `found: ${caught.message}\n  wanted: ${text}`);
  return caught;
}

const client = new OpenAI(options);
for (const [name, flow] of Object.entries(flows)) {
  const started = performance.now();
  let outcome = "ok";
  try {
    await flow(client);
  } catch (error) {
    console.error(error);
    outcome = "FAILED";
    process.exitCode = 1;
  }
  const took_s = ((performance.now() - started) / 1000).toFixed(2);
  console.log(`${outcome.padEnd(6)} ${took_s.padStart(5)} s  ${name}`);
}
