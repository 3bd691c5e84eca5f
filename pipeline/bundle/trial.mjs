// Loads a folder with transformers.js; see javascript.py. Question on standard input, answer on the
// last line of standard output, both JSON.
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const question = JSON.parse(fs.readFileSync(0, 'utf8'));
try {
    const manifest = JSON.parse(fs.readFileSync(path.join(question.library, 'package.json'), 'utf8'));
    const entry = manifest.exports?.node?.import?.default ?? manifest.main;
    const library = await import(pathToFileURL(path.join(question.library, entry)).href);
    const { AutoTokenizer, Tensor, env } = library;
    env.allowRemoteModels = false;
    env.localModelPath = path.dirname(question.folder) + '/';
    const name = path.basename(question.folder);
    const tensor = (rows) =>
        new Tensor('int64', BigInt64Array.from(rows.map(BigInt)), [1, rows.length]);

    const tokenizer = await AutoTokenizer.from_pretrained(name);
    const ids = tokenizer.encode(question.text);
    const made = {};
    for (const dtype of question.dtypes) {
        const model = await library[question.auto_class].from_pretrained(name, { dtype });
        if (question.prompts) {
            made[dtype] = [];
            for (const prompt of question.prompts) {
                const all = await model.generate({
                    input_ids: tensor(prompt),
                    attention_mask: tensor(prompt.map(() => 1)),
                    max_new_tokens: question.length,
                    do_sample: false,
                    num_beams: 1,
                    repetition_penalty: 1.0,
                });
                made[dtype].push(all.tolist()[0].map(Number).slice(prompt.length));
            }
        } else {
            const result = await model({
                input_ids: tensor(ids),
                attention_mask: tensor(ids.map(() => 1)),
                token_type_ids: tensor(ids.map(() => 0)),
            });
            made[dtype] = {};
            for (const output of question.outputs) {
                made[dtype][output] = Array.from(result[output].data, Number);
            }
        }
        await model.dispose();
    }
    console.log(JSON.stringify({ version: manifest.version, ids, made }));
} catch (error) {
    console.log(JSON.stringify({ problem: String(error?.message ?? error) }));
}
