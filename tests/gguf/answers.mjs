// What llama.cpp makes of a GGUF: reads {texts, prompts, tokens} as JSON from standard input; writes
// {texts: [ids], prompts: [ids], answers: [ids], addsBos, template, eos} as JSON. A prompt comes without the
// beginning-of-sequence token that llama.cpp puts before it; answers are greedy and end with the end token.
import fs from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const job = JSON.parse(fs.readFileSync(0, "utf8"));
const llama = await getLlama({build: "never", gpu: false, logLevel: LlamaLogLevel.error, maxThreads: 1, progressLogs: false});
const model = await llama.loadModel({modelPath: process.argv[2], useMmap: true});
const context = await model.createContext({contextSize: 1024, sequences: 1, threads: 1});
const sequence = context.getSequence();
const found = {texts: job.texts.map((text) => [...model.tokenize(text, true)]), prompts: [], answers: [], addsBos: model.tokens.shouldPrependBosToken};

for (const text of job.prompts) {
    const ids = model.tokenize(text, true);
    if (model.tokens.shouldPrependBosToken) ids.unshift(model.tokens.bos);
    const answer = [];
    await sequence.clearHistory();
    for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        answer.push(token);
        if (model.isEogToken(token) || answer.length >= job.tokens) break;
    }
    found.prompts.push([...ids]);
    found.answers.push(answer);
}
found.template = model.fileInfo.metadata.tokenizer.chat_template;
found.eos = model.tokens.eos;
console.log(JSON.stringify(found));
process.exit(0);
