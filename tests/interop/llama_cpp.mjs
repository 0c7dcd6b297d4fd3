// Prints what llama.cpp makes of a text: its tokens, and the most likely next ones with their probabilities.
//
//     node llama_cpp.mjs FOLDER MODEL.gguf ADAPTER.gguf|- SCALE TEXT
//
// FOLDER is one in which `npm install --ignore-scripts node-llama-cpp` was run, which brings llama.cpp built for the processor.
import {pathToFileURL} from "node:url";

const [folder, modelPath, adapter, scale, text] = process.argv.slice(2);
const {getLlama} = await import(pathToFileURL(`${folder}/node_modules/node-llama-cpp/dist/index.js`));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath});
const lora = adapter === "-" ? undefined : {adapters: [{filePath: adapter, scale: Number(scale)}]};
const context = await model.createContext({contextSize: 256, lora});
const tokens = model.tokenize(text, true);
const input = tokens.map((token, i) => i + 1 < tokens.length ? token : [token, {generateNext: {probabilities: true}}]);
const last = (await context.getSequence().controlledEvaluate(input)).at(-1);
console.log(JSON.stringify({tokens, next: [...last.next.probabilities.entries()].slice(0, 20)}));
process.exit(0);
