// llama.cpp as an arm: node llama_cpp.mjs FOLDER_OF_NODE_MODULES FILE.gguf on|off|auto TOKENS_AFTER_A_PROMPT
//
// Questions and answers are lines of JSON, as in child.py. It uses node-llama-cpp's binding of llama.cpp and not its
// queues and samplers: a step is timed around `llama_decode` alone, and the likeliest token is taken off the clock.

import {readFileSync} from "node:fs";
import {join} from "node:path";
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const [folder, file, flashAttention, room] = process.argv.slice(2);
const PROMPT_CHUNK = 256;
const FLASH = {on: true, off: false, auto: "auto"};

let llama, model, sampler, context, native, length, next;

async function load() {
    const home = join(folder, "node_modules", "node-llama-cpp");
    const {getLlama} = await import(pathToFileURL(join(home, "dist", "index.js")));
    llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 0});
    model = await llama.loadModel({modelPath: file, gpuLayers: 0, useMmap: false});
    sampler = new llama._bindings.AddonSampler(model._model);
    sampler.applyConfig({temperature: 0});
    return {
        runner: readFileSync("/proc/self/maps", "utf8").match(/libggml-cpu-(\w+)\.so/)?.[1] ?? "unknown",
        instructions: llama.systemInfo.trim(),
        versions: {
            "llama.cpp": llama.llamaCppRelease.release,
            "node-llama-cpp": JSON.parse(readFileSync(join(home, "package.json"), "utf8")).version,
            node: process.version
        }
    };
}

async function prepare({prompt, batch}) {
    await context?.dispose();
    context = await model.createContext({
        contextSize: prompt.length + Number(room), sequences: batch, batchSize: PROMPT_CHUNK,
        flashAttention: FLASH[flashAttention]
    });
    [native, length, next] = [context._ctx, prompt.length, []];
    for (let sequence = 0; sequence < batch; sequence++) {
        for (let start = 0; start < length; start += PROMPT_CHUNK) {
            const part = prompt.slice(start, start + PROMPT_CHUNK);
            native.initBatch(part.length);
            const [row] = add(sequence, start, part);
            await native.decodeBatch();
            next[sequence] = await native.sampleToken(row, sampler);
        }
    }
    return {};
}

async function turn({threads, warm, steps}) {
    native.setThreads(threads);
    for (const sequence of next.keys())
        native.removeTokenCellsFromSequence(sequence, length, -1);
    let tokens = next;
    const seconds = [], first = [];
    for (let step = 0; step < warm + steps; step++) {
        first.push(tokens[0]);
        native.initBatch(tokens.length);
        const rows = tokens.map((token, sequence) => add(sequence, length + step, [token])[0]);
        const began = performance.now();
        await native.decodeBatch();
        seconds.push((performance.now() - began) / 1000);
        tokens = [];
        for (const row of rows)
            tokens.push(await native.sampleToken(row, sampler));
    }
    return {seconds: seconds.slice(warm), tokens: first};
}

function add(sequence, start, tokens) {
    return native.addToBatch(sequence, start, Uint32Array.from(tokens), Uint32Array.from([tokens.length - 1]));
}

const questions = {load, prepare, turn};
for await (const line of createInterface({input: process.stdin})) {
    const {what, ...question} = JSON.parse(line);
    const answer = await questions[what](question).catch((error) => ({error: String(error)}));
    process.stdout.write(JSON.stringify(answer) + "\n");
}
process.exit(0);
